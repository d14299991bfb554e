"""Fill the suite: train two kinds of agent on every level, measure and record what has no record yet.

    python -m experiments.suite.tune --jobs 2        # first: which agents, and their learning rates
    python -m experiments.suite.run --jobs 2
    python -m experiments.suite.run --list | --only hrm-gate@size_13 0 | --draw-only

All have the same processor time, and on some levels more of it besides (`longer`). An agent that is faster has seen
more frames by then: at equal frames, records have the learning curve, of actions sampled in training.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import Record
from experiments.engine.runner import Job
from experiments.engine.runs import metrics, sampled_curve, thinned
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve

HERE = Path(__file__).resolve().parent
NAME = "suite"
UNLIMITED = 10**9
"""Frames: the clock ends every run."""


@cache
def world_of(level: str) -> tuple[str, dict[str, Any]]:
    """Id and options of the environment that `+experiment=suite/LEVEL` trains on."""
    env = resolve(compose_config([f"+experiment={NAME}/{level}"], "train"))["env"]
    return env["id"], env["options"]


@cache
def of_level(level: str) -> list[str]:
    """Overrides of `hrm_agent.train`: the environment of a level, without the core that its experiment names."""
    env_id, options = world_of(level)
    plain = resolve(compose_config([f"env={env_id}"], "train"))["env"]["options"]
    changed = {name: value for name, value in options.items() if name not in plain or plain[name] != value}
    return [f"env={env_id}", *(f"env.options.{name}={value}" for name, value in changed.items())]


def timed(seconds: float) -> list[str]:
    """Overrides of a run that the clock alone ends."""
    return [f"total_steps={UNLIMITED}", f"max_seconds={seconds:g}"]


class Study(runner.Study):
    """`AGENT@LEVEL` as an arm, and `AGENT_long@LEVEL` with more time; `also` has agents of some levels alone."""

    def arms(self) -> dict[str, Any]:
        settings, agents = self.settings, self.settings["agents"]
        longer = {f"{name}_long": own for name, own in agents.items()}
        groups = [(agents, settings), (longer, settings["longer"])]  # agents, and their seconds, seeds and levels
        groups += [({name: own["overrides"]}, {**settings, **own}) for name, own in settings["also"].items()]
        return {
            f"{name}@{at}": {"overrides": [*of_level(at), *own, *timed(group["seconds"])], "seeds": group["seeds"]}
            for named, group in groups
            for at in group["levels"]
            for name, own in named.items()
        }

    def evaluate(self, place: Path, **options: Any) -> dict[str, Any]:
        few, level = self.settings["few"], place.name.rpartition("_seed")[0].partition("@")[2]
        episodes = few["episodes"] if level in few["levels"] else self.settings["episodes"]
        return super().evaluate(place, **{"episodes": episodes, **options})

    def measure(self, job: Job) -> list[Record]:
        (record,) = super().measure(job)
        candidate, level = job.arm.split("@")
        curve = thinned(sampled_curve(metrics(self.place(job))))
        return [{**record, "candidate": candidate, "level": level, "curve": curve}]


if __name__ == "__main__":
    runner.main(Study, HERE)
