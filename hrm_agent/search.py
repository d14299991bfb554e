"""`python -m hrm_agent.search space=SPACE [trials=N] [KEY=VALUE] ...`: search for settings with Optuna."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

if __name__ == "__main__":
    from hrm_agent.launch import startup

    startup.begin("search", sys.argv[1:])  # now: what follows imports torch, which takes seconds

from omegaconf import DictConfig

from hrm_agent.files.interrupts import INTERRUPTED
from hrm_agent.files.plain_yaml import read_yaml
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch import startup
from hrm_agent.launch.cli import (
    UsageError,
    command_overrides,
    compose_config,
    fail,
    open_options,
    parse_options,
    say_error,
    usage_errors,
)
from hrm_agent.launch.commands import spelled
from hrm_agent.launch.errors import terminated_like_interrupted
from hrm_agent.launch.search import TRIALS, Plan, Search, SearchOptions, check_installed, plan_search
from hrm_agent.launch.search_space import read_space
from hrm_agent.launch.settings import GROUPS, config_folder, train_defaults
from hrm_agent.launch.side_by_side import side_by_side
from hrm_agent.launch.sweep_table import print_table, sweep_table
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.train import check_run

EXAMPLES = (
    "python -m hrm_agent.search space=ppo env=DynamicMaze-v0 total_steps=100_000 trials=20 jobs=2",
    "python -m hrm_agent.search space=dqn algo.n_step=1,3 'algo.gamma=interval(0.9,0.99)'",
    "python -m hrm_agent.search space=mine.yaml storage=/shared/search.journal out=/shared/search",
)
USAGE = "python -m hrm_agent.search [space=SPACE] [trials=N] [KEY=VALUE] ..."
OWN = tuple(field.name for field in fields(SearchOptions))


@outliving_the_terminal()
def main() -> None:
    with usage_errors(), terminated_like_interrupted():
        own, typed = split(sys.argv[1:])
        options = SearchOptions(**parse_options(own, SearchOptions, USAGE, EXAMPLES))
        plan = prepare(options, typed)
        with Search(plan, options.trials, options.sampler_seed) as search:
            say_where(plan)
            try:
                side_by_side(range(options.jobs), options.jobs, search.work)
            except KeyboardInterrupt:
                fail("interrupted; the same command continues", INTERRUPTED)
            best = search.best()
            if best is None:
                say_error(f"no trial has succeeded; the logs are in {plan.folder / TRIALS}")
                raise SystemExit(1)
            print_table(sweep_table(str(plan.folder / TRIALS)))
    print(spelled(best))


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options of the search, and settings of the trials.

    Raises:
        UsageError: a setting of neither that is spelled nearly as one of the search's.
    """
    own = [a for a in arguments if a.startswith("-") or "=" not in a or a.partition("=")[0] in OWN]
    typed = [a for a in arguments if a not in own]
    known = {*train_defaults(), *read_yaml(config_folder() / "train.yaml"), *GROUPS}
    for argument in typed:
        name = argument.lstrip("+").partition("=")[0]
        meant = did_you_mean(name, OWN, shown=0)
        if "." not in name and "/" not in name and name not in known and meant:
            raise UsageError(f"{name}: no such setting{meant}")
    return own, typed


def prepare(options: SearchOptions, typed: list[str]) -> Plan:
    """A search whose first value, and every other one once, can be trained; nothing has been written.

    Raises:
        ValueError: what is wrong with the space, or with a setting.
    """
    check_installed()
    space = read_space(options.space, command_overrides(open_options(typed)))
    space.distributions()  # intervals that hold nothing
    first: DictConfig | None = None
    for job in space.jobs():
        config = compose_config(job, "train")
        check_run(config)
        first = first or config
    values: Any = first
    return plan_search(options, space, str(values.env.id), str(values.objective))


def say_where(plan: Plan) -> None:
    """Where the trials are, and what shows them."""
    startup.over()
    print(f"search {plan.name}: {plan.folder}", file=sys.stderr)
    print(f"dashboard: optuna-dashboard {plan.storage}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
