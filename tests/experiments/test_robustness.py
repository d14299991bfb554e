"""The soak finds what grows and only that; a killed process is hit in the phase that was chosen."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.robustness import soak


def series(per_hour: float, noise: float = 0.2, level: float = 300.0) -> tuple[list[float], list[float]]:
    """An hour of samples, ten seconds apart, that rise so much, with noise that lasts for minutes."""
    minutes = np.arange(0, 60, 1 / 6)
    wander = np.convolve(np.random.default_rng(0).normal(0, noise, len(minutes) + 17), np.ones(18) / 18**0.5, "valid")
    return list(minutes), list(level + per_hour * minutes / 60 + wander)


@pytest.mark.parametrize(("per_hour", "verdict"), [(0.0, "flat"), (20.0, "rises"), (-20.0, "flat")])
def test_what_grows_is_told_from_what_wanders(per_hour: float, verdict: str) -> None:
    middle, low, high = soak.slope(*series(per_hour))
    assert low < per_hour < high
    assert low < middle < high
    assert soak.verdict_of(low, high, allowed=6.0) == verdict
    assert soak.verdict_of(*soak.slope(*series(per_hour, noise=300.0))[1:], allowed=6.0) == "undecided"


def test_growth_during_the_warm_up_does_not_count() -> None:
    minutes, values = series(0.0)
    samples = [
        {"minutes": m, **dict.fromkeys(soak.SERIES, v - 100 * (m < 5))} for m, v in zip(minutes, values, strict=True)
    ]
    assert {found["verdict"] for found in soak.judge(samples, 6.0).values()} == {"flat"}
    assert soak.judge(samples, 0.0)["uss_mb"]["verdict"] != "flat"


def test_a_process_is_counted_with_its_memory_descriptors_threads_and_children(tmp_path: Path) -> None:
    before, wait = soak.sample(os.getpid()), threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    held = np.ones(8 << 20)  # 64 MB, touched
    with open(tmp_path / "file", "w"):
        ready, inform = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            os._exit(0)
        after = soak.sample(os.getpid())
        alone = soak.sample(child)
        os.write(inform, b"x")
        os.waitpid(child, 0)
    wait.set()
    thread.join()
    os.close(ready)
    os.close(inform)
    assert after["processes"] == before["processes"] + 1
    assert after["threads"] == before["threads"] + 2
    assert after["descriptors"] == before["descriptors"] + alone["descriptors"] + 3
    assert after["rss_mb"] - alone["rss_mb"] > before["rss_mb"] + 60
    assert held.sum() > 0
    assert soak.sample(child) == {}
