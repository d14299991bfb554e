"""`python -m hrm_agent.play`: a local web page on which one watches an agent think and disturbs it."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import closing, suppress
from functools import partial
from typing import Annotated, Any

from msgspec import Meta

from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import TRAINED, load_agent
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.names.values import Seed, Split
from hrm_agent.playground.game import Game
from hrm_agent.playground.server import HOST, check_installed, listen, make_token, serve
from hrm_agent.playground.world import make_world

DEFAULT_AGENT = "DynamicMaze-TRM-v0"
Port = Annotated[int, Meta(ge=0, le=65_535)]
EXAMPLES = (
    "python -m hrm_agent.play",
    "python -m hrm_agent.play agent=PaperMaze-HRM-v1 segments=4",
    "python -m hrm_agent.play run=RUN env_options.rows=6 env_options.cols=6 open=true",
)


def play(
    run: str | None = None,
    agent: str | None = None,
    seed: Seed = 0,
    split: Split = "test",
    overrides: AgentOverrides = TRAINED,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    best: bool = True,
    port: Port = 0,
    open: bool = False,
) -> None:
    """Watch an agent think on a local web page, disturb it, and play beside it.

    Prints the page's address, and serves it to this machine alone, until Ctrl-C.

    Args:
        run: folder of a training run or of an agent; or give `agent`; without either, DynamicMaze-TRM-v0.
        agent: id of a registered agent in place of `run`; `python -m hrm_agent.agents` lists them.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test` levels, where the environment has splits.
        overrides: of the trained settings, to begin with.
        env: another environment than the agent was trained on; only the size of its grid may differ
            (`Agent.fit`).
        env_options: changed keyword arguments of the environment.
        best: of a run's agents, the best on validation levels rather than the last.
        port: of this machine; 0 takes a free one.
        open: open the page in a browser.

    Raises:
        ValueError: the extra `play` is not installed, no agent there, an agent that does not fit the environment, an
            environment that does not draw itself, a port that is taken, or a setting out of range.
    """
    check_installed()
    if run is None and agent is None:
        agent = DEFAULT_AGENT
    player = load_agent(run, agent, best)
    env_id, options = player.environment(env, env_options)
    player = player.fit_environment(env_id, options)
    player.changed(overrides)  # what is not possible is refused before anything listens
    with listen(port) as opened:
        token = make_token()
        address = f"http://{HOST}:{opened.getsockname()[1]}/?token={token}"
        build = partial(make_world, env_id, options, split, seed)
        with closing(Game(player, build, player.load_probe(), agent or str(run), overrides=overrides)) as game:
            print(f"open it: {address}\nCtrl-C ends it", flush=True)
            if open:
                webbrowser.open(address)
            with suppress(KeyboardInterrupt):  # which is how it ends
                serve(game, opened, token)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.play [run=RUN|agent=ID] [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        play(**parse_agent_options(sys.argv[1:], play, usage, EXAMPLES))


if __name__ == "__main__":
    main()
