"""`python -m hrm_agent.evaluate run=RUN|agent=ID`: an agent on held-out levels, with baselines and the bound."""

from __future__ import annotations

import sys
from typing import Any

from hrm_agent.agents.agent import Agent, AgentOverrides
from hrm_agent.agents.registry import TRAINED, load_agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.cost import measure_cost
from hrm_agent.evaluation.episodes import PolicyActor
from hrm_agent.evaluation.level_sets import find_level_set
from hrm_agent.evaluation.report import BATCH, REFERENCES, Levels, compare, describe_agent, format_report, to_json
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.names.values import Episodes, Seed, Split
from hrm_agent.parallel.threads import Threads, available_cores
from hrm_agent.recurrence import check_kernel
from hrm_agent.tensors.trees import to_tensors
from hrm_agent.training.kernel_work import choose_for_playing

DEFAULT_LEVELS = {"episodes": 1000, "seed": 0, "split": "test", "env": None, "env_options": None}
EXAMPLES = (
    "python -m hrm_agent.evaluate agent=DynamicMaze-TRM-v0",
    "python -m hrm_agent.evaluate run=RUN carry=reset segments=4 out=reset.json",
    "python -m hrm_agent.evaluate run=RUN env_options.p_change=0.2",
)


def evaluate(
    run: str | None = None,
    episodes: Episodes = 1000,
    out: str | None = None,
    overrides: AgentOverrides = TRAINED,
    seed: Seed = 0,
    split: Split = "test",
    env: str | None = None,
    best: bool = True,
    env_options: dict[str, Any] | None = None,
    level_set: str | None = None,
    baselines: bool = True,
    agent: str | None = None,
    kernel: str = "auto",
) -> dict[str, Any]:
    """Greedy episodes of a trained agent, a random policy and BFS re-planners on the same levels.

    The same call gives the same numbers, but for `ms_per_decision` and `ms_per_decision_batched`.

    Args:
        run: folder of a training run or of an agent; or give `agent`.
        agent: id of a registered agent in place of `run`; `python -m hrm_agent.agents` lists them.
        episodes: levels `seed ... seed + episodes - 1`, the first episode of each.
        out: file for the JSON, written whole or not at all.
        overrides: of the trained settings.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test` levels, where the environment has splits.
        env: another environment than the agent was trained on; only the size of its grid may differ
            (`Agent.fit`).
        best: of a run's agents, the best on validation levels rather than the last.
        env_options: changed keyword arguments of the environment.
        level_set: play exactly this frozen set (`evaluation/level_sets.json`): `default`, `paper`, `paper_v1`, `braid`
            and others. It fixes all that chooses levels.
        baselines: play the random policy and the re-planners too; without, they are None.
        kernel: what computes the core, `plain`, `fused`, `fused_bf16` or `compiled`, in float32 unless it says
            otherwise. `auto` takes what computed the agent in training where that was on such a processor; elsewhere
            it measures.

    Returns:
        What is written: `report.compare`, with `sampled` for actions drawn from the policy (None where it has
        Q-values), and `report.describe_agent`. A metric that is not defined (no oracle, no success) is None.

    Raises:
        ValueError: no agent there, a file of it damaged, an agent that does not fit the environment, a level set
            that is not what it was, or a setting out of range; nothing is written then.
    """
    check_kernel(kernel)
    if out is not None:
        check_output(out)
    player = load_agent(run, agent, best, overrides)
    levels = _choose_levels(player, episodes, seed, split, env, env_options or None, level_set)
    probe = make_vector_env(levels.env_id, 1, levels.env_options)
    player = player.fit(probe.single_observation_space)
    player.check_fits(probe.single_observation_space, probe.single_action_space)
    obs = to_tensors(probe.reset(seed=0)[0])
    probe.close()
    threads, policy = Threads(available_cores()), player.policy
    used = choose_for_playing(policy, kernel, obs, min(BATCH, levels.episodes), threads, player.info)
    draws = policy.config.heads != "q"  # Q-values are no distribution to draw from
    played = compare(
        lambda: PolicyActor(policy),
        levels,
        lambda segments_used: measure_cost(policy, player.observation_space, BATCH, segments_used),
        {"sampled": (lambda: PolicyActor(policy, deterministic=False)) if draws else None},
        REFERENCES if baselines else (),
        threads,
    )
    report = {**played, "level_set": level_set, **describe_agent(player, run, agent), "kernel": used}
    if out is not None:
        write_output(out, to_json(report))
    return report


def _choose_levels(
    agent: Agent,
    episodes: int,
    seed: int,
    split: str,
    env: str | None,
    env_options: dict[str, Any] | None,
    level_set: str | None,
) -> Levels:
    """The levels that the settings name."""
    if level_set is None:
        env_id, options = agent.environment(env, env_options)
        return Levels(env_id, options, episodes, seed, split)
    given = {"episodes": episodes, "seed": seed, "split": split, "env": env, "env_options": env_options}
    changed = [name for name, value in given.items() if value != DEFAULT_LEVELS[name]]
    if changed:
        raise ValueError(f"level_set={level_set} says which levels are played; leave out {', '.join(changed)}")
    levels = find_level_set(level_set)
    return Levels(levels.env, levels.env_options, levels.count, levels.first, levels.split)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.evaluate run=RUN|agent=ID [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        options = parse_agent_options(sys.argv[1:], evaluate, usage, EXAMPLES)
        report = evaluate(**options)
    print(format_report(report))
    if options["out"] is not None:
        print(f"wrote {options['out']}")


if __name__ == "__main__":
    main()
