"""The same search for all: a few short runs of each agent, settings drawn at random from a declared space.

    python -m experiments.baselines.tune [--jobs 2] [--seeds 0 1 2 3 4] [--only trm sb3_dqn]
    python -m experiments.baselines.tune --draw-only

Trial 0 of an agent has the library's or our own defaults; trial t draws every setting of its space (`tuning.yaml`) from
a stream of its own, so more trials leave the earlier ones as they are; trial 4 of an agent of Stable-Baselines3 has
settings chosen by hand. A trial trains in one thread with fog off for the same processor time (other work on the
machine does not count), then plays greedily on the 500 validation levels of every training run. Trials are added to
`tuning.json`; at the end, or by `--draw-only` alone, the best of every agent goes into `tuned.json`.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.baselines.draw import best_of
from experiments.baselines.trials import trial_record
from experiments.engine import runner
from experiments.engine.pages import settings_of
from experiments.engine.records import RUNS, Record, load
from experiments.engine.runner import Job

HERE = Path(__file__).resolve().parent
ENV = "DynamicMaze-v0"
UNLIMITED = 10**9  # frames: the clock ends every trial
OURS = ("trm",)


class Search(runner.Study):
    """Trials in place of seeds."""

    results = "tuning.json"
    finished = "study.json"  # which is written last
    key = order = ("agent", "trial")

    def __init__(self, folder: Path = HERE, side_by_side: int = 1) -> None:
        super().__init__(folder, side_by_side)
        self.settings = settings_of(HERE, "tuning.yaml")

    def arms(self) -> dict[str, Any]:
        return {agent: [] for agent in self.settings["spaces"]}

    def place(self, job: Job) -> Path:
        return RUNS / "tuning" / f"{job.arm}_trial{job.seed}"

    def drawn(self, agent: str, trial: int) -> dict[str, Any]:
        """The changed settings of a trial; none in trial 0."""
        by_hand = self.settings["by_hand"]
        if trial == 0:
            return {}
        if trial == self.settings["hand_trial"] and agent in by_hand:
            return by_hand[agent]
        generator = np.random.default_rng([zlib.crc32(agent.encode()), trial])
        drawn: dict[str, Any] = {}
        for name, space in self.settings["spaces"][agent].items():
            if isinstance(space, dict):
                low, high = np.log((space["least"], space["most"]))
                drawn[name] = float(f"{np.exp(generator.uniform(low, high)):.2e}")
            else:
                drawn[name] = space[int(generator.integers(len(space)))]
        if "minibatches" in drawn:
            drawn["batch_size"] = drawn["num_envs"] * drawn["n_steps"] // drawn.pop("minibatches")
        if "core.hidden_size" in drawn:
            drawn["core.inner_size"] = 2 * drawn["core.hidden_size"]
        return drawn

    def module_of(self, job: Job) -> str:
        return self.module if job.arm in OURS else "hrm_agent.baselines"

    def overrides(self, job: Job) -> list[str]:
        limits = [f"total_steps={UNLIMITED}", f"max_seconds={self.settings['seconds']:g}", "clock=cpu"]
        same, drawn = [*limits, "eval_every=0", "test_episodes=0", "seed=0"], self.drawn(job.arm, job.seed)
        if job.arm not in OURS:
            given = [f"settings.{name}={value}" for name, value in drawn.items()]
            return [f"baseline={job.arm}", f"env={ENV}", *given, *same]
        begins = ["+earlier=november_2026", f"env={ENV}", "algo=ppo", f"core={job.arm}"]
        given = [f"{name}={value}" for name, value in drawn.items()]
        return [*begins, *given, *same, "threads=1", "checkpoint_every=0", "keep_checkpoints=1"]

    def measure(self, job: Job) -> list[Record]:
        what = {"settings": self.drawn(job.arm, job.seed)}
        return [trial_record(job, self.trained(job), job.arm not in OURS, ENV, self.settings["seconds"], what)]

    def draw(self) -> None:
        """The best trial of every agent into `tuned.json`, then the page."""
        best = best_of(load(self.folder / self.results), self.settings["chosen"])
        kept = {a: {k: r[k] for k in ("trial", "success", "seconds", "settings")} for a, r in best.items()}
        (self.folder / "tuned.json").write_text(json.dumps(kept, indent=2) + "\n")
        super().draw()


if __name__ == "__main__":
    runner.main(Search, HERE)
