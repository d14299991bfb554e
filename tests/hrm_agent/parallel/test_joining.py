"""A process whose partners do not start says so, and reacts to signals meanwhile."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from commands import TINY_RUN
from forks import Ended, Forks
from hrm_agent.parallel.processes import JOIN_VARIABLE, join

STOPPED = """
import os, signal, threading
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
from hrm_agent import train
train.main()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(forks: Forks, folder: Path, ranks: list[int], size: int, seconds: float, *command: str) -> list[Ended]:
    common = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        JOIN_VARIABLE: str(seconds),
    }
    words = [*command, *TINY_RUN, f"hydra.run.dir={folder / 'run'}"]
    return forks.run([words] * len(ranks), [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks])


def test_partners_that_do_not_start_are_named(tmp_path: Path, forks: Forks) -> None:
    (alone,) = start(forks, tmp_path, [1], 2, 1.5, "-m", "hrm_agent.train")
    first, third = start(forks, tmp_path, [0, 2], 4, 1.5, "-m", "hrm_agent.train")
    for ended in (alone, first, third):
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) <= 2  # torch's own waiting would print a stack
    assert "error: waited 1.5 s for process 0 of 2 at 127.0.0.1:" in alone.stderr
    for ended in (first, third):  # which begin at different times, and end together
        assert "error: waited 1.5 s for processes 1, 3 of 4 at 127.0.0.1:" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_for_others_reacts_to_signals(rank: int, tmp_path: Path, forks: Forks) -> None:
    (ended,) = start(forks, tmp_path, [rank], 2, 60, "-c", STOPPED)
    assert ended.returncode in (130, -signal.SIGTERM)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "1e9"])
def test_another_time_to_wait_is_refused(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), (JOIN_VARIABLE, seconds)):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{JOIN_VARIABLE}='{seconds}': expected seconds, more than 0"):
        join()
