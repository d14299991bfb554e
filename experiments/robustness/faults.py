"""Full disks, a run folder that is removed, a home and an installation that cannot be written.

    python -m experiments.robustness.faults               # as root: file systems are mounted, for this process alone

Each case trains what `kill.py` trains. It must end with one line instead of a traceback, or train on without its
caches; where the folder is still there, the run is resumed once there is room again, and must end with the bytes of an
undisturbed run. Full disks are small file systems in memory (tmpfs), not imitations. Writes `faults.json`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from experiments.engine import machine
from experiments.engine.records import ROOT, Record
from experiments.robustness.kill import Caches, Experiment, Watched, files_of, finish

HERE = Path(__file__).resolve().parent
SHARES = (0.02, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Sizes of the disks that a run fills, as shares of what it needs."""

USUAL = (
    "hrm_agent.train starts",
    "run folder:",
    "curves:",
    "resuming from",
    "compiling",
    "measuring on",
    "recording a video",
)
PROGRESS = (" steps/s", " s of training")
MARK = "HRM_AGENT_MOUNTS_ARE_PRIVATE"


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below the folder can be written, by root neither."""
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def said(log: Path) -> list[str]:
    """What a command printed, without the lines of every run."""
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(USUAL) and not any(part in line for part in PROGRESS)]


class Faults:
    """Args:
    work: an empty folder.
    seed: of the training.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.experiment = Experiment(work, seed)
        self.experiment.uninterrupted()

    def words(self, folder: Path) -> list[str]:
        return [*self.experiment.settings, f"hydra.run.dir={folder}"]

    def record(self, case: str, code: int, log: Path) -> Record:
        lines = [line.replace(str(self.work), "") for line in said(log)]
        return {"case": case, "exit_code": code, "said": lines[:20], "lines": len(lines)}

    def resumed(self, folder: Path, caches: Caches) -> Record:
        how, code = finish(folder, self.experiment.settings, caches)
        return {
            "then": how,
            "then_exit_code": code,
            "same": code == 0 and files_of(folder) == self.experiment.reference,
        }

    def needed(self) -> int:
        """Kilobytes of a whole run's folder."""
        done = subprocess.run(["du", "-sk", str(self.work / "reference")], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[0])

    def full_disk(self, share: float) -> Record:
        """The run's folder is on a disk that fills up."""
        disk, kilobytes = self.work / f"disk{share}", max(16, round(share * self.needed()))
        log, folder = disk.with_suffix(".log"), disk / "run"
        with small_disk(disk, kilobytes):
            code = Watched(self.words(folder), self.experiment.warm, log).wait()
            found = self.record(f"full disk, {share:.0%} of what a run needs", code, log)
            mount("-o", "remount,size=64m", str(disk))
            (self.work / "again").mkdir(exist_ok=True)
            return {**found, **self.resumed(folder, self.experiment.warm)}

    def full_cache(self) -> Record:
        """Nothing that is compiled can be kept."""
        disk = self.work / "cachedisk"
        log, folder = disk.with_suffix(".log"), self.work / "cacheless"
        with small_disk(disk, 16):
            caches = Caches(disk)
            code = Watched(self.words(folder), caches, log).wait()
        same = files_of(folder) == self.experiment.reference
        return {**self.record("full disk under the caches", code, log), "same": same}

    def removed(self) -> Record:
        """The folder is removed while the run trains."""
        folder = self.work / "removed"
        run = Watched(self.words(folder), self.experiment.warm, self.work / "removed.log")
        while run.begun["training"] < 4 and run.listen(120.0):
            pass
        shutil.rmtree(folder)
        code = run.wait()
        left = sorted(path.name for path in folder.rglob("*")) if folder.exists() else []
        return {**self.record("run folder removed", code, self.work / "removed.log"), "left": left}

    def unwritable(self) -> Record:
        """Neither the home nor the installation can be written, and nothing says where caches are."""
        home, folder = self.work / "home", self.work / "unwritable"
        home.mkdir()
        names = ("NUMBA_CACHE_DIR", "HRM_AGENT_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")
        before = dict(os.environ)
        try:
            for name in names:
                os.environ.pop(name, None)
            os.environ["HOME"] = str(home)
            with read_only(home), read_only(ROOT):
                code = Watched(self.words(folder), NoCaches(home), self.work / "unwritable.log").wait()
        finally:
            os.environ.clear()
            os.environ.update(before)
        found = self.record("read-only home and installation", code, self.work / "unwritable.log")
        return {**found, "same": files_of(folder) == self.experiment.reference}


class NoCaches(Caches):
    """Processes that are not told where caches are."""

    def environment(self) -> dict[str, str]:
        given = super().environment()
        return {name: value for name, value in given.items() if name not in ("NUMBA_CACHE_DIR", "HRM_AGENT_CACHE")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "faults.json")
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("mounts file systems; run it as root, in a container for example")
    if MARK not in os.environ:  # so that no mount is seen, or left, outside this process
        module = ["-m", "experiments.robustness.faults"]
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *module, *sys.argv[1:]])
    load = machine.load()
    with tempfile.TemporaryDirectory() as work:
        faults = Faults(Path(work), given.seed)
        cases: list[Callable[[], Record]] = [partial(faults.full_disk, share) for share in SHARES]
        cases += [faults.full_cache, faults.removed, faults.unwritable]
        records = []
        for case in cases:
            records.append(case())
            print(records[-1], flush=True)
    result = {
        "command": machine.command("--seed", str(given.seed)),
        "started": " ".join(["python -m hrm_agent.train", *faults.experiment.settings]),
        "seed": given.seed,
        "machine": machine.cores_and_kind(),
        "processor": machine.processor(),
        "load": load,
        "commit": machine.commit_of_code(),
        "cases": records,
    }
    machine.write(given.out, result)


if __name__ == "__main__":
    main()
