"""The same search for every agent: its learning rate, of as many as `study.yaml` lists, each trained as long.

    python -m experiments.baselines.rates [--jobs 2] [--only trm sb3_dqn]

Trial t of an agent has the t-th rate. A trial trains in one thread with fog off and seed 0 for the same processor time
(other work on the machine does not count), and then plays the validation levels. Trials are added to `rates.json`;
the rate of an agent is the one whose sampled actions succeed most in the last episodes of training, for greedy play of
an agent that has hardly begun to learn says little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.baselines import run
from experiments.baselines.run import HERE, NETWORKS, UNLIMITED, rate_of
from experiments.baselines.trials import trial_record
from experiments.engine import runner
from experiments.engine.records import RUNS, Record
from experiments.engine.runner import Job


class Search(run.Study):
    """Trials in place of seeds."""

    finished = "study.json"  # which is written last
    key = order = ("agent", "trial")

    def __init__(self, folder: Path = HERE, side_by_side: int = 1) -> None:
        super().__init__(folder, side_by_side)
        self.results = "rates.json"

    def arms(self) -> dict[str, Any]:
        trials = list(range(len(self.settings["rates"])))
        agents = self.agents().items()
        return {name: {"agent": name, "fog": False, "overrides": given, "seeds": trials} for name, given in agents}

    def place(self, job: Job) -> Path:
        return RUNS / "rates" / f"{job.arm}_trial{job.seed}"

    def is_trained(self, place: Path) -> bool:
        return (place / self.finished).exists()

    def rate(self, job: Job) -> float:
        rates = self.settings.get("rates_of", {}).get(job.arm, self.settings["rates"])
        return float(rates[job.seed])

    def overrides(self, job: Job) -> list[str]:
        limits = [f"total_steps={UNLIMITED}", f"max_seconds={self.settings['rate_seconds']:g}", "clock=cpu"]
        tried = [f"{rate_of(job.arm)}={self.rate(job):g}", *limits, "eval_every=0", "test_episodes=0", "seed=0"]
        own = self.arm(job.arm)["overrides"]
        if job.arm in NETWORKS:
            return [f"baseline={job.arm}", f"env={self.settings['env']}", *own, *tried]
        once = [given for given in self.settings["base"] if given.partition("=")[0] not in ("clock", "eval_every")]
        return [*once, *own, *tried, "threads=1", "checkpoint_every=0", "keep_checkpoints=1"]

    def measure(self, job: Job) -> list[Record]:
        what = {"rate": self.rate(job), "overrides": self.arm(job.arm)["overrides"]}
        settings, by_library = self.settings, job.arm in NETWORKS
        return [trial_record(job, self.trained(job), by_library, settings["env"], settings["rate_seconds"], what)]


if __name__ == "__main__":
    runner.main(Search, HERE)
