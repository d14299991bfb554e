"""Kill a training run at random moments, resume it, and compare every byte with a run that nothing interrupted.

    python -m experiments.robustness.kill                 # 50 moments, a quarter of an hour on one core

The moments are drawn, with the seed, from the time that an uninterrupted run spends in each phase: the phase's segment
and how far into it the process is killed (`kill -9`). Kills in the compilers start with empty caches. Then the run is
resumed, or started again where it had no folder yet. Agents, checkpoints and metrics.jsonl must be those of the
uninterrupted run, byte for byte; unfinished files (*.tmp) that stay in the folder are listed. `watched.py` says what
phase a process is in, and replaces the clock of training, which would differ between any two runs. Writes `kill.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.engine import machine
from experiments.engine.records import ROOT, Record

HERE = Path(__file__).resolve().parent
SETTINGS = [
    "env=DynamicMaze-v0", "env.options.rows=3", "env.options.cols=3", "env.options.max_episode_steps=12", "core=trm",
    "core.hidden_size=32", "carry=full", "segments=1", "algo.num_envs=32", "total_steps=12_288", "log_every=1024",
    "eval_every=2048", "eval_episodes=200", "video_every=8192", "checkpoint_every=1024", "test_episodes=0", "threads=1",
    "kernel=fused",
]  # fmt: skip
MOMENTS = {"training": 15, "validation": 8, "video": 6, "checkpoint": 9, "run folder": 3, "numba": 4, "C++": 5}
"""How many kills each phase is due."""

COMPILERS = ("numba", "C++")
TRIES = 4
"""Of a moment that passes before the kill arrives; what is hit in the last one counts."""


class Segment(NamedTuple):
    """A stretch of one phase, without what begins and ends within it."""

    phase: str
    begin: float
    end: float


class Caches(NamedTuple):
    folder: Path

    def environment(self) -> dict[str, str]:
        """What a process needs to compile into these folders, or to find there what was compiled."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
        own = {"NUMBA_CACHE_DIR": str(self.folder / "numba"), "HRM_AGENT_CACHE": str(self.folder / "kernels")}
        return {**os.environ, **own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class Watched:
    """A process and the phases it announces.

    Args:
        settings: of `hrm_agent.train`.
    """

    def __init__(self, settings: list[str], caches: Caches, log: Path) -> None:
        reading, writing = os.pipe()
        self.pipe, self.log = reading, open(log, "wb")  # noqa: SIM115 - closed by wait()
        words = [sys.executable, str(HERE / "watched.py"), str(writing), "hrm_agent.train", *settings]
        self.process = subprocess.Popen(
            words, cwd=log.parent, env=caches.environment(), pass_fds=[writing],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        os.close(writing)
        self._open: dict[str, list[str]] = {}  # of each thread, the innermost last
        self._since: dict[str, float] = {}
        self._rest = ""
        self.begun: Counter[str] = Counter()  # segments of each phase
        self.segments: list[Segment] = []

    def phases(self) -> set[str]:
        """What the process is doing, as far as it has said."""
        return {stack[-1] for stack in self._open.values() if stack}

    def listen(self, seconds: float) -> bool:
        """Wait so long for announcements; False where there will be none any more."""
        if not select.select([self.pipe], [], [], seconds)[0]:
            return True
        data = os.read(self.pipe, 1 << 16)
        lines = (self._rest + data.decode()).split("\n")
        self._rest = lines.pop()
        for line in lines:
            phase, _, thread = line[1:].rpartition(" ")
            self._hear(phase, thread, line.startswith("+"))
        return bool(data)

    def _hear(self, phase: str, thread: str, begins: bool) -> None:
        now, stack = time.monotonic(), self._open.setdefault(thread, [])
        if stack:
            self.segments.append(Segment(stack[-1], self._since[thread], now))
        if begins:
            stack.append(phase)
        else:
            stack.pop()
        self._since[thread] = now
        if stack:
            self.begun[stack[-1]] += 1

    def kill_in(self, phase: str, number: int, after: float) -> set[str]:
        """`kill -9` so many seconds into the segment of that number; returns the phases that were hit."""
        while self.begun[phase] < number and self.listen(120.0):
            pass
        until = time.monotonic() + after
        while (left := until - time.monotonic()) > 0 and self.begun[phase] == number and phase in self.phases():
            self.listen(left)
        self.process.send_signal(signal.SIGKILL)
        self.wait()
        return self.phases()

    def wait(self) -> int:
        """The exit code, once everything that was announced has been read."""
        while self.listen(600.0):
            pass
        os.close(self.pipe)
        self.log.close()
        return self.process.wait()


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of everything in a run's folder that does not tell the time or the command."""
    told = ("tensorboard", ".hydra", "run.json", "run.lock", "config.yaml", "train.log")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] not in told and path.suffix != ".tmp":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def finish(folder: Path, settings: list[str], caches: Caches) -> tuple[str, int]:
    """Bring a killed run to its end, as its user would: how, and the exit code."""
    description = folder / "run.json"
    if description.exists() and description.stat().st_size:
        how, words = "resumed", [f"resume={folder}"]
    else:
        how, words = "started again", [*settings, f"hydra.run.dir={folder}"]
    return how, Watched(words, caches, folder.with_suffix(".again.log")).wait()


def draw_moment(draws: random.Random, segments: list[Segment]) -> tuple[int, float]:
    """Number of a segment, from 1, and seconds into it: uniform over the time that the segments take together."""
    point = draws.uniform(0, sum(s.end - s.begin for s in segments))
    for number, segment in enumerate(segments, 1):
        if point <= segment.end - segment.begin or number == len(segments):
            return number, min(point, segment.end - segment.begin)
        point -= segment.end - segment.begin
    raise ValueError("no segments")


class Experiment:
    """Args:
    work: an empty folder.
    seed: of the training and of the moments.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.settings = work, [*SETTINGS, f"seed={seed}"]
        self.draws = random.Random(seed)
        self.warm = Caches(work / "warm")
        self.segments: dict[str, list[Segment]] = {}
        self.reference: dict[str, str] = {}
        self._number = 0

    def uninterrupted(self) -> None:
        """Run with empty caches, then with full ones: what is compared with, and how long each phase takes."""
        for name in ("cold", "reference"):
            folder = self.work / name
            run = Watched([*self.settings, f"hydra.run.dir={folder}"], self.warm, folder.with_suffix(".log"))
            if run.wait() != 0:
                raise RuntimeError(folder.with_suffix(".log").read_text())
            taken = COMPILERS if name == "cold" else set(MOMENTS) - set(COMPILERS)
            self.segments |= {phase: [s for s in run.segments if s.phase == phase] for phase in taken}
            if name == "cold":
                self.reference = files_of(folder)
            elif files_of(folder) != self.reference:
                raise RuntimeError("two uninterrupted runs differ")

    def kill(self, phase: str) -> Record:
        """One moment: kill, finish, compare."""
        self._number += 1
        number, after = draw_moment(self.draws, self.segments[phase])
        hit: set[str] = set()
        for _ in range(TRIES):
            folder = self.work / f"run{self._number}"
            for old in self.work.glob(f"run{self._number}*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            caches = Caches(self.work / f"run{self._number}.caches") if phase in COMPILERS else self.warm
            begun = Watched([*self.settings, f"hydra.run.dir={folder}"], caches, folder.with_suffix(".log"))
            hit = begun.kill_in(phase, number, after)
            if phase in hit:
                break
        how, code = finish(folder, self.settings, caches)
        found = files_of(folder)
        same = code == 0 and found == self.reference
        record = {
            "phase": phase,
            "segment": number,
            "seconds_into_it": round(after, 4),
            "hit": sorted(hit),
            "then": how,
            "exit_code": code,
            "left_over": sorted(path.name for path in folder.rglob("*.tmp")),
            "same": same,
        }
        if not same:
            names = found.keys() | self.reference.keys()
            record["differ"] = sorted(n for n in names if found.get(n) != self.reference.get(n))
            record["said"] = folder.with_suffix(".again.log").read_text().strip().splitlines()[-1:]
        return record

    def run(self, moments: dict[str, int]) -> Iterator[Record]:
        """All moments, the phases in a random order."""
        order = [phase for phase, count in moments.items() for _ in range(count)]
        self.draws.shuffle(order)
        for phase in order:
            yield self.kill(phase)
            shutil.rmtree(self.work / f"run{self._number}", ignore_errors=True)
            shutil.rmtree(self.work / f"run{self._number}.caches", ignore_errors=True)


def summary(records: list[Record]) -> dict[str, Any]:
    return {
        phase: {
            "killed": len(own),
            "hit": sum(phase in r["hit"] for r in own),
            "same": sum(r["same"] for r in own),
            "left_over": sum(bool(r["left_over"]) for r in own),
        }
        for phase in MOMENTS
        if (own := [r for r in records if r["phase"] == phase])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(MOMENTS), default=list(MOMENTS), metavar="PHASE")
    parser.add_argument("--out", type=Path, default=HERE / "kill.json")
    given = parser.parse_args()
    began, load = time.monotonic(), machine.load()
    with tempfile.TemporaryDirectory() as work:
        experiment = Experiment(Path(work), given.seed)
        experiment.uninterrupted()
        records = []
        for record in experiment.run({phase: MOMENTS[phase] for phase in given.only}):
            records.append(record)
            said = "the same bytes" if record["same"] else f"DIFFERS: {record}"
            where = ", ".join(record["hit"]) or "no phase"
            print(f"{len(records)}: killed in {where}, {record['then']}: {said}", flush=True)
    some = ["--only", *given.only] if given.only != list(MOMENTS) else []
    result = {
        "command": machine.command("--seed", str(given.seed), *some),
        "started": " ".join(["python -m hrm_agent.train", *experiment.settings]),
        "seed": given.seed,
        "machine": machine.cores_and_kind(),
        "processor": machine.processor(),
        "load": load,
        "commit": machine.commit_of_code(),
        "seconds": round(time.monotonic() - began),
        "compared": sorted(experiment.reference),
        "summary": summary(records),
        "moments": records,
    }
    machine.write(given.out, result)
    raise SystemExit(0 if all(r["same"] for r in records) else 1)


if __name__ == "__main__":
    main()
