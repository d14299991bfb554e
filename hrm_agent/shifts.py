"""`python -m hrm_agent.shifts run=RUN|agent=ID`: an agent on mazes that differ from its own in one option at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

from msgspec import Meta

from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import TRAINED, load_agent
from hrm_agent.evaluation.report import describe_agent, to_json
from hrm_agent.evaluation.shifts import AXES, base_config, format_header, format_point, list_points, run_shifts
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.launch.plot_shifts import check_figure, draw_shifts
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.names.values import Episodes, Seed, Split
from hrm_agent.parallel.threads import Threads, available_cores
from hrm_envs.config import MAX_SIDE

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
EXAMPLES = (
    "python -m hrm_agent.shifts agent=DynamicMaze-TRM-v0 episodes=100",
    "python -m hrm_agent.shifts run=RUN axes=[size,view] out=shifts.json",
    "python -m hrm_agent.shifts run=RUN axes=[size] sizes=[9,13,21,31] out=sizes.json figure=sizes.png",
    "python -m hrm_agent.shifts run=RUN carry=reset",
)


def shifts(
    run: str | None = None,
    episodes: Episodes = 500,
    out: str | None = None,
    axes: list[str] | None = None,
    max_size: Side = 10,
    overrides: AgentOverrides = TRAINED,
    seed: Seed = 0,
    split: Split = "test",
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    best: bool = True,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    agent: str | None = None,
    sizes: list[int] | None = None,
    figure: str | None = None,
) -> dict[str, Any]:
    """Greedy and sampled episodes on the maze that it was trained on and on one-axis shifts (`evaluation.shifts`).

    Args:
        run: folder of a training run or of an agent; or give `agent`.
        agent: id of a registered agent in place of `run`; `python -m hrm_agent.agents` lists them.
        episodes: levels `seed ... seed + episodes - 1` at each point.
        out: file for the JSON, written whole or not at all.
        axes: which options to shift: `size`, `doors`, `p_change`, `door_process`, `goal`, `view`; None: all of them.
        max_size: largest maze of the axis `size`, in cells along each side.
        sizes: odd sides of the grids of the axis `size`, in place of those up to `max_size`; the time limit of each is
            in proportion to its cells.
        figure: file for the curves of success over each axis, with 95% intervals: .png, .svg or .pdf, written whole or
            not at all.
        overrides: of the trained settings.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test` levels.
        env: another base maze than the one trained on.
        env_options: changed keyword arguments of the base maze.
        best: of a run's agents, the best on validation levels rather than the last.
        on_record: called with every record as soon as it is there.

    Returns:
        The written record: the agent, and `records`, one for each point (`evaluation.shifts.run_shifts`).

    Raises:
        ValueError: no agent there, a file of it damaged, an agent that does not fit the maze to start from, or a
            setting out of range; nothing is written then.
    """
    if out is not None:
        check_output(out)
    if figure is not None:
        check_figure(figure)
    if not 1 <= max_size <= MAX_SIDE:
        raise ValueError(f"max_size={max_size}: expected 1 to {MAX_SIDE} cells along each side")
    player = load_agent(run, agent, best, overrides)
    env_id, options = player.environment(env, env_options)
    points = list_points(base_config(env_id, options), list(AXES) if axes is None else axes, max_size, sizes)
    records = []
    for record in run_shifts(player, env_id, options, points, episodes, seed, split, Threads(available_cores())):
        records.append(record)
        if on_record is not None:
            on_record(record)
    report = {
        **describe_agent(player, run, agent),
        "seeds": {"first": seed, "count": episodes},
        "split": split,
        "records": records,
    }
    if out is not None:
        write_output(out, to_json(report))
    if figure is not None:
        write_output(figure, draw_shifts(records, figure))
    return report


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.shifts run=RUN|agent=ID [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        options = parse_agent_options(sys.argv[1:], shifts, usage, EXAMPLES)
        shifts(**options, on_record=_say)
    for written in ("out", "figure"):
        if options[written] is not None:
            print(f"wrote {options[written]}")


def _say(record: dict[str, Any]) -> None:
    if record["axis"] == "trained":
        print(format_header())
    print(format_point(record), flush=True)


if __name__ == "__main__":
    main()
