"""The soak finds what grows and only that; a killed process is hit in the phase that was chosen."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from experiments.engine.tables import EMPTY
from experiments.robustness import draw, kill, soak, watched

# The soak


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


COUNTED = """
import os, signal, sys, threading
print("before", flush=True)
sys.stdin.readline()
threading.Thread(target=threading.Event().wait, daemon=True).start()
held = b"x" * (64 << 20)
file = open(sys.argv[1], "w")
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
sys.stdin.readline()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_a_process_is_counted_with_its_memory_descriptors_threads_and_children(tmp_path: Path) -> None:
    """Of another process: in this one, threads of earlier tests may end."""
    command = [sys.executable, "-c", COUNTED, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = soak.sample(process.pid)
        process.stdin.write("go on\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        after, alone = soak.sample(process.pid), soak.sample(child)
        process.stdin.write("end\n")
    assert after["processes"] == before["processes"] + 1
    assert after["threads"] == before["threads"] + 2
    assert after["descriptors"] == before["descriptors"] + alone["descriptors"] + 1
    assert after["rss_mb"] - alone["rss_mb"] > before["rss_mb"] + 60
    assert soak.sample(child) == {}


# Kills


STEPS = """
import os, sys, time
def say(line): os.write(int(sys.argv[1]), line)
say(b"+training 1\\n-training 1\\n+training 1\\n+video 1\\n")
time.sleep(0.01)
say(b"+C++ 2\\n-video 1\\n-training 1\\n+checkpoint 1\\n")
time.sleep(60)
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kill.Watched:
    (tmp_path / "watched.py").write_text(STEPS)
    monkeypatch.setattr(kill, "HERE", tmp_path)
    return kill.Watched([], kill.Caches(tmp_path), tmp_path / "log")


def test_a_process_is_killed_in_the_phase_that_was_chosen(process: kill.Watched) -> None:
    assert process.kill_in("checkpoint", 1, 0.01) == {"checkpoint", "C++"}
    assert process.process.returncode == -9
    assert [s.phase for s in process.segments] == ["training", "training", "video", "training"]
    video = process.segments[2]
    assert video.end - video.begin >= 0.009


def test_moments_are_uniform_over_the_time_in_a_phase() -> None:
    segments = [kill.Segment("video", 10.0, 11.0), kill.Segment("video", 20.0, 20.0), kill.Segment("video", 30.0, 33.0)]
    draws = random.Random(0)
    moments = [kill.draw_moment(draws, segments) for _ in range(2000)]
    assert {number for number, _ in moments} == {1, 3}
    assert sum(number == 3 for number, _ in moments) == pytest.approx(1500, abs=80)
    assert all(0 <= after <= (1.0 if number == 1 else 3.0) for number, after in moments)


def test_what_is_watched_is_there_and_says_so(tmp_path: Path) -> None:
    module = ModuleType("hrm_agent.training.trainer")

    class Trainer:
        def iterate(self) -> int:
            return self.validate()

        def validate(self) -> int:
            raise ValueError("inside")

        _record_video = save_checkpoint = validate

    module.Trainer, module.compile_env = Trainer, len  # type: ignore[attr-defined]
    with open(tmp_path / "said", "wb", buffering=0) as said:
        watched.wrap(module, said.fileno())
        with pytest.raises(ValueError, match="inside"):
            Trainer().iterate()
    lines = [line.rpartition(" ")[0] for line in (tmp_path / "said").read_text().splitlines()]
    assert lines == ["+training", "+validation", "-validation", "-training"]


def test_the_beginning_of_a_context_is_a_phase(tmp_path: Path) -> None:
    entered = []

    @contextmanager
    def context(number: int) -> Iterator[int]:
        entered.append(said.tell())
        yield number + 1
        entered.append(said.tell())

    with open(tmp_path / "said", "w+b", buffering=0) as said:
        begin = watched.announced_begin(context, "run folder", said.fileno())
        with begin(1) as value:
            assert value == 2
            inside = said.tell()
        assert 0 < entered[0] < inside == entered[1] == said.tell()


@pytest.mark.parametrize("module", watched.WATCHED)
def test_every_function_that_is_watched_exists(module: str) -> None:
    for path in watched.WATCHED[module]:
        holder = __import__(module, fromlist=["_"])
        for name in path.removesuffix("()").split("."):
            holder = getattr(holder, name)
        assert callable(holder)


# The page


def test_the_page_has_what_the_records_have(tmp_path: Path) -> None:
    assert set(draw.tables(tmp_path).values()) == {EMPTY}
    found = {"killed": 3, "hit": 2, "same": 3, "left_over": 1}
    (tmp_path / "kill.json").write_text(json.dumps({"summary": {"video": found, "numba": found}}))
    assert draw.tables(tmp_path)["kill"].splitlines()[-1] == "| all | 6 | 4 | 6 | 2 |"
    cases = [{"case": "a", "exit_code": 1, "lines": 1, "then": "resumed", "same": False}]
    (tmp_path / "faults.json").write_text(json.dumps({"cases": cases}))
    assert draw.tables(tmp_path)["faults"].splitlines()[-1] == "| a | 1 | 1 | resumed | NO |"
    minutes, values = series(0.0)
    samples = [{"minutes": m, **dict.fromkeys(soak.SERIES, v)} for m, v in zip(minutes, values, strict=True)]
    result = {"minutes": 60.0, "frames": 1, "validations": 2, "videos": 3, "warm_up_minutes": 9.0}
    (tmp_path / "soak.json").write_text(json.dumps({**result, "series": soak.judge(samples, 9.0)}))
    (tmp_path / "soak_samples.json").write_text(json.dumps(samples))
    assert draw.tables(tmp_path)["soak"].count("| flat |") == len(soak.SERIES)
    draw.figures(tmp_path)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
