"""The same search for every agent: its learning rate, of those in `study.yaml`, each trained as long.

    python -m experiments.baselines.rates [--jobs 2] [--only trm sb3_dqn]

Trial t of an agent has the t-th rate; agents of Stable-Baselines3 that have two settings try every rate with the first
and then with the second, so they have twice as many trials. A trial trains in one thread with fog off and seed 0 for
the same processor time, and then plays the validation levels. Trials are
added to `rates.json`; an agent is given what was tried in the trial whose sampled actions succeed most in the last
episodes of training, for greedy play of an agent that has hardly begun to learn says little.
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
        agents = self.agents().items()
        return {
            name: {"agent": name, "tried": tried, "seeds": list(range(len(tried) * len(self.rates_of(name))))}
            for name, tried in agents
        }

    def rates_of(self, agent: str) -> list[float]:
        return [float(rate) for rate in self.settings.get("rates_of", {}).get(agent, self.settings["rates"])]

    def place(self, job: Job) -> Path:
        return RUNS / "rates" / f"{job.arm}_trial{job.seed}"

    def is_trained(self, place: Path) -> bool:
        return (place / self.finished).exists()

    def trial(self, job: Job) -> tuple[list[str], float]:
        """Settings and learning rate of a trial."""
        rates = self.rates_of(job.arm)
        which, rate = divmod(job.seed, len(rates))
        return self.arm(job.arm)["tried"][which], rates[rate]

    def overrides(self, job: Job) -> list[str]:
        limits = [f"total_steps={UNLIMITED}", f"max_seconds={self.settings['rate_seconds']:g}", "clock=cpu"]
        own, rate = self.trial(job)
        tried = [f"{rate_of(job.arm)}={rate:g}", *limits, "eval_every=0", "test_episodes=0", "seed=0"]
        if job.arm in NETWORKS:
            return [f"baseline={job.arm}", f"env={self.settings['env']}", *own, *tried]
        once = [given for given in self.settings["base"] if given.partition("=")[0] not in ("clock", "eval_every")]
        return [*once, *own, *tried, "threads=1", "checkpoint_every=0", "keep_checkpoints=1"]

    def measure(self, job: Job) -> list[Record]:
        overrides, rate = self.trial(job)
        what = {"rate": rate, "overrides": overrides}
        settings, by_library = self.settings, job.arm in NETWORKS
        return [trial_record(job, self.trained(job), by_library, settings["env"], settings["rate_seconds"], what)]


if __name__ == "__main__":
    runner.main(Search, HERE)
