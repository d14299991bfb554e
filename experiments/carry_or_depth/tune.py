"""A learning rate for every arm, on validation levels: the three that `study.yaml` names, and beyond them as needed.

    python -m experiments.carry_or_depth.tune [--jobs 2] [--only gate-K1@3.0e-03]
    python -m experiments.carry_or_depth.tune --draw-only

A trial is a whole run of an arm with a seed that the study does not have. Its last agent plays 1,000 validation levels,
greedily and sampled. Where the best of an arm's rates is the largest, twice that is tried too, where it is the smallest
half of that, until the best one lies between others or a bound is reached. The best rates of most arms lie next to
rates at which training fails, which one seed does not show: the two best of every arm are tried with two more seeds.
Trials are added to `tuning.json`; at the end, or by `--draw-only` alone, the rate of every arm with the highest mean of
the two over these seeds goes into `tuned.json`, with all that were tried.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import RUNS, Record, load
from experiments.engine.runner import Job, chosen
from experiments.engine.statistics import mean_of

HERE = Path(__file__).resolve().parent


class Search(runner.Study):
    """`ARM@RATE` in place of an arm; what has been tried says which rates there are."""

    results = "tuning.json"

    def arms(self) -> dict[str, Any]:
        tuning, found = self.settings["tuning"], chosen_rates(load(self.folder / self.results))
        arms = {}
        for name in self.settings["arms"]:
            tried = found.get(name)
            rates = rates_to_try(tried, tuning["learning_rates"], tuning["bounds"])
            ended = tried is not None and len(rates) == len(tried["tried"])
            again = best_two(tried) if ended else []
            for rate in rates:
                seeds = tuning["seeds"] if rate in again else tuning["seeds"][:1]
                overrides = [*self.of_study(name), f"algo.learning_rate={rate}"]
                arms[f"{name}@{rate:.1e}"] = {"overrides": overrides, "seeds": seeds}
        return arms

    def of_study(self, name: str) -> list[str]:
        given = self.settings["arms"][name]
        return given["overrides"] if isinstance(given, dict) else given

    def place(self, job: Job) -> Path:
        return RUNS / f"{self.folder.name}_tuning" / f"{job.arm}_seed{job.seed}"

    def measure(self, job: Job) -> list[Record]:
        arm, rate = job.arm.split("@")
        return [self.trial_record(job, self.settings["tuning"]["episodes"], arm=arm, learning_rate=float(rate))]

    def finish(self) -> None:
        """Trials that follow from those made: beyond the ends of the grid, and of the two best rates once more."""
        while more := chosen(self.missing(), self.jobs(), self.only):
            with ThreadPoolExecutor(self.side_by_side) as pool:
                if not all(list(pool.map(self.run, more))):
                    return

    def draw(self) -> None:
        """The best of every arm, and its trials, into `tuned.json`."""
        found = chosen_rates(load(self.folder / self.results))
        (self.folder / "tuned.json").write_text(json.dumps(found, indent=2) + "\n")


def rates_to_try(found: dict[str, Any] | None, grid: Sequence[float], bounds: Sequence[float]) -> list[float]:
    """The learning rates of an arm: the grid, and one more where all of it was tried and its best is at an end.

    Args:
        found: what `chosen_rates` has of the arm.
        grid: of all arms.
        bounds: smallest and largest that may be tried.
    """
    if found is None:
        return list(grid)
    tried = {trial["learning_rate"]: trial["first"] for trial in found["tried"]}
    best, more = max(tried, key=lambda rate: tried[rate]), []
    if set(grid) <= set(tried):
        more = [best * 2] * (best == max(tried)) + [best / 2] * (best == min(tried))
    return sorted({*grid, *tried, *(rate for rate in more if bounds[0] <= rate <= bounds[1])})


def best_two(found: dict[str, Any]) -> list[float]:
    """The two rates of an arm that were best with the first seed."""
    ranked = sorted(found["tried"], key=lambda trial: -trial["first"])
    return [trial["learning_rate"] for trial in ranked[:2]]


def chosen_rates(trials: list[Record]) -> dict[str, Any]:
    """By arm: the best learning rate of those with the most seeds, and all that were tried.

    A rate has the means over its seeds of greedy and sampled success, and as `first` the mean of the two with the first
    of its seeds.
    """
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(trial["arm"] for trial in trials):
        tried = []
        for rate in sorted({trial["learning_rate"] for trial in trials if trial["arm"] == arm}):
            own = [trial for trial in trials if (trial["arm"], trial["learning_rate"]) == (arm, rate)]
            means = {name: mean_of(trial[name] for trial in own) for name in ("success", "sampled_success")}
            first = min(own, key=lambda trial: trial["seed"])
            score = (first["success"] + first["sampled_success"]) / 2
            tried.append({"learning_rate": rate, "seeds": len(own), **means, "first": score})
        best = max(tried, key=lambda t: (t["seeds"], t["success"] + t["sampled_success"]))
        found[arm] = {"learning_rate": best["learning_rate"], "tried": tried}
    return found


if __name__ == "__main__":
    runner.main(Search, HERE)
