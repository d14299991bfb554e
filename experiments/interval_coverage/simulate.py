"""How often 95% intervals over training seeds and levels contain the truth, by simulation.

    python -m experiments.interval_coverage.simulate

An agent of seed s succeeds on level e with log odds `mean + of_seed[s] + of_level[e]`, both normal. An interval has
to contain the mean success over all seeds and levels; for two arms that share the levels, the difference of theirs.
Writes `coverage.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine import machine
from experiments.engine.statistics import bootstrap_interval, crossed_difference, crossed_interval, mean_interval

HERE = Path(__file__).resolve().parent
SEEDS = (3, 5, 10)
LEVELS = 1000
REPEATS = 1000
SLOW_REPEATS = 200
WORLDS = {  # log odds of the mean; standard deviation over seeds, over levels
    "near 1, seeds alike": (4.0, 0.1, 1.0),
    "near 1, seeds differ": (4.0, 0.5, 1.0),
    "near 1, levels differ": (4.0, 0.5, 2.0),
    "0.997": (7.0, 0.5, 1.5),
    "0.84": (2.0, 0.5, 1.0),
    "0.82, seeds differ much": (2.0, 1.0, 1.0),
    "one half": (0.0, 0.5, 1.0),
    "0.92, all differ much": (5.0, 1.0, 3.0),
}
SHIFT = 0.5
"""Log odds by which the first of two arms is better."""

Table = NDArray[np.float64]


def succeeds(log_odds: Table) -> Table:
    return 1 / (1 + np.exp(-log_odds))


def truth(mean: float, of_seed: float, of_level: float) -> float:
    """Mean success over seeds and levels, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    return float(weights @ succeeds(mean + np.hypot(of_seed, of_level) * points) / weights.sum())


def outcomes(random: np.random.Generator, seeds: int, mean: float, of_seed: float, levels: Table) -> Table:
    """Success 0 or 1 `[seeds, levels]` of one arm; `levels` `[1, levels]` are log odds."""
    log_odds = mean + of_seed * random.normal(size=(seeds, 1)) + levels
    return (random.random(log_odds.shape) < succeeds(log_odds)).astype(float)


def intervals(scores: Table) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "crossed", lambda: crossed_interval(scores)
    yield "Student over seeds", lambda: mean_interval(list(scores.mean(1)))
    yield "bootstrap over seeds and levels", lambda: bootstrap_interval(scores, "mean", replicates=500)


def simulate(world: str, seeds: int) -> dict[str, Any]:
    """Coverage and mean width of every interval in one world."""
    mean, of_seed, of_level = WORLDS[world]
    random = np.random.default_rng([seeds, list(WORLDS).index(world)])
    true, better = truth(mean, of_seed, of_level), truth(mean + SHIFT, of_seed, of_level)
    inside: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for repeat in range(REPEATS):
        levels = of_level * random.normal(size=(1, LEVELS))
        scores = outcomes(random, seeds, mean, of_seed, levels)
        other = outcomes(random, seeds, mean + SHIFT, of_seed, levels)
        found = [
            (name, make(), true) for name, make in intervals(scores) if "boot" not in name or repeat < SLOW_REPEATS
        ]
        found.append(("crossed difference", crossed_difference(other, scores), better - true))
        for name, interval, target in found:
            inside.setdefault(name, []).append(bool(interval.low <= target <= interval.high))
            widths.setdefault(name, []).append(interval.high - interval.low)
    covered = {name: {"covers": np.mean(inside[name]), "width": np.mean(widths[name])} for name in inside}
    return {"world": world, "success": true, "difference": better - true, "seeds": seeds, "intervals": covered}


def main() -> None:
    records = []
    for world in WORLDS:
        for seeds in SEEDS:
            records.append(simulate(world, seeds))
            print(records[-1], flush=True)
    about = {"command": "python -m experiments.interval_coverage.simulate", "commit": machine.commit_of_code()}
    sizes = {"levels": LEVELS, "repeats": REPEATS, "repeats of the bootstrap": SLOW_REPEATS}
    machine.write(HERE / "coverage.json", {**about, "processor": machine.processor(), **sizes, "records": records})


if __name__ == "__main__":
    main()
