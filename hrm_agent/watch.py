"""`python -m hrm_agent.watch run=RUN|agent=ID`: episodes of a trained agent as a GIF or an MP4."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import TRAINED, load_agent
from hrm_agent.evaluation.thinking_video import ThinkingView
from hrm_agent.evaluation.video import check_mp4, encode_gif, encode_mp4, record_episodes
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.names.values import Seed, Split
from hrm_agent.training.waiting import Waiting

Videos = Annotated[int, Meta(ge=1, le=10_000)]
PerSecond = Annotated[float, Meta(ge=0.01, le=1000)]
FPS, THINKING_FPS = 8.0, 1.0
EXAMPLES = (
    "python -m hrm_agent.watch agent=DynamicMaze-TRM-v0",
    "python -m hrm_agent.watch agent=DynamicMaze-TRM-v0 think=true segments=4",
    "python -m hrm_agent.watch run=RUN episodes=1 out=video.mp4",
    "python -m hrm_agent.watch run=RUN env_options.rows=6 env_options.cols=6",
)


def watch(
    run: str | None = None,
    episodes: Videos = 3,
    out: str = "watch.gif",
    seed: Seed = 0,
    split: Split = "test",
    overrides: AgentOverrides = TRAINED,
    fps: PerSecond | None = None,
    env: str | None = None,
    best: bool = True,
    env_options: dict[str, Any] | None = None,
    agent: str | None = None,
    think: bool = False,
    on_progress: Callable[[str, str], Any] | None = None,
) -> Path:
    """A video of greedy episodes, with the probability of each action drawn in.

    Args:
        run: folder of a training run or of an agent; or give `agent`.
        agent: id of a registered agent in place of `run`; `python -m hrm_agent.agents` lists them.
        think: show every segment of each decision in a panel: where the latent changed, the distances that the
            agent's linear probe reads (`python -m hrm_agent.probe`), if it has one, and the policy.
        episodes: levels `seed ... seed + episodes - 1`.
        out: a `.gif` or `.mp4` file, written whole or not at all.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test` levels, where the environment has splits.
        overrides: of the trained settings.
        fps: pictures, that is environment steps, a second; None: 8, with `think` 1.
        env: another environment than the agent was trained on; only the size of its grid may differ
            (`Agent.fit`).
        best: of a run's agents, the best on validation levels rather than the last.
        env_options: changed keyword arguments of the environment.
        on_progress: called with what is done, and at every step with how far it is.

    Returns:
        The file written.

    Raises:
        ValueError: another kind of file, no agent there, an agent that does not fit the environment, or a
            setting out of range; nothing is written then.
    """
    path = check_output(out, make_folder=True)
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"out={out}: expected a name that ends in .gif or .mp4")
    fps = (THINKING_FPS if think else FPS) if fps is None else fps
    if fps <= 0:
        raise ValueError(f"fps={fps}: expected more than 0 frames a second")
    if path.suffix == ".mp4":
        check_mp4()  # before the work is done
    player = load_agent(run, agent, best, overrides)
    env_id, options = player.environment(env, env_options)
    player = player.fit_environment(env_id, options)
    view = ThinkingView(player.policy, player.load_probe()) if think else None
    say = on_progress or (lambda what, progress: None)

    def moved(episode: int, step: str) -> None:
        say(f"recording episode {episode} of {episodes}", step)

    frames = record_episodes(player.policy, env_id, options, episodes, seed, split, view=view, moved=moved)
    say(f"encoding {len(frames):,} pictures", "")
    encode = encode_gif if path.suffix == ".gif" else encode_mp4
    write_output(path, encode(frames, fps))
    return path


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.watch run=RUN|agent=ID [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        options = parse_agent_options(sys.argv[1:], watch, usage, EXAMPLES)
        with Waiting("") as line:
            path = watch(**options, on_progress=line.say)
        print(path)


if __name__ == "__main__":
    main()
