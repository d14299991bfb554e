"""Train for an hour, with validation and a video every minute, and watch memory, descriptors and threads.

    python -m experiments.robustness.soak                 # an hour; --minutes for another time

Training is the README's first command on one thread. A short run before it finds the frames that it trains in a minute,
after which it then validates, records a video and writes a checkpoint. Every `--every` seconds the process and its
children are read from /proc. A series is flat if a line through its medians of each minute, after the warm-up, rises by
less than the tolerance in an hour, at the upper end of its 95% interval. Writes `soak.json`, `soak_samples.json` and
`soak.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from experiments.engine import machine
from experiments.engine.figures import panels, save
from experiments.engine.records import ROOT, Record
from experiments.engine.records import load as load_records
from experiments.engine.records import save as save_records

HERE = Path(__file__).resolve().parent
COMMAND = [
    "env=DynamicMaze-v0",
    "algo=ppo",
    "threads=1",
    "kernel=fused",
    "total_steps=1_000_000_000",
    "test_episodes=0",
]
CALIBRATION = 20.0  # seconds of training
SHORTEST_WARM_UP, WARM_UP_SHARE = 2.0, 0.15  # minutes; of the whole
SERIES = {
    "uss_mb": ("memory of its own (USS), MB", 0.02),
    "rss_mb": ("resident memory (RSS), MB", 0.02),
    "descriptors": ("descriptors", None),
    "threads": ("threads", None),
    "processes": ("processes", None),
}
"""What is watched: its name, and how much it may rise in an hour, as a share of its level; None: by less than one."""


# What is read from /proc


def family(pid: int) -> list[int]:
    """A process and all below it that are there."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [pid]
    for known in found:  # grows while it is read
        found += parents.get(known, [])
    return found


def memory(pid: int) -> dict[str, float]:
    """USS and RSS of a process in MB."""
    fields: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split(":")
        fields[name] = int(size.split()[0]) / 1024
    own = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"uss_mb": own, "rss_mb": fields["Rss"]}


def sample(pid: int) -> dict[str, float]:
    """The series, summed over a process and its children; empty once it has ended."""
    total = dict.fromkeys(SERIES, 0.0)
    for member in family(pid):
        with suppress(OSError, KeyError):
            found = memory(member)
            found["descriptors"] = len(os.listdir(f"/proc/{member}/fd"))
            found["threads"] = len(os.listdir(f"/proc/{member}/task"))
            for name, value in {**found, "processes": 1.0}.items():
                total[name] += value
    return total if total["processes"] else {}


# The verdict


def slope(minutes: Sequence[float], values: Sequence[float], lags: int = 5) -> tuple[float, float, float]:
    """Rise in an hour of a line through the medians of each minute, and its 95% interval.

    Neighbouring minutes are alike, so the error of the slope is that of Newey and West (1987), which also counts the
    products of residuals up to `lags` minutes apart.
    """
    whole = np.floor(np.asarray(minutes)).astype(int)
    series = np.asarray(values, dtype=float)
    numbers = np.unique(whole)
    x = numbers - numbers.mean()
    y = np.array([np.median(series[whole == number]) for number in numbers])
    count = len(x)
    if count < 3:
        raise ValueError(f"{count} minutes after the warm-up: expected 3 or more")
    steepness = float(x @ y / (x @ x))
    scores = x * (y - y.mean() - steepness * x)
    variance = float(scores @ scores)
    for lag in range(1, min(lags, count - 1) + 1):
        variance += 2 * (1 - lag / (lags + 1)) * float(scores[lag:] @ scores[:-lag])
    error = (max(variance, 0.0) * count / (count - 2)) ** 0.5 / float(x @ x)
    middle, half = 60 * steepness, 60 * 1.96 * error
    return middle, middle - half, middle + half


def verdict_of(low: float, high: float, allowed: float) -> str:
    """`flat` where even the upper end is below what is allowed; `rises` where even the lower end is above 0."""
    if high < allowed:
        return "flat"
    return "rises" if low > 0 else "undecided"


def judge(samples: Sequence[Record], warm_up: float) -> dict[str, Record]:
    """The verdict on every series; `warm_up` in minutes."""
    after = [record for record in samples if record["minutes"] >= warm_up]
    judged = {}
    for name, (_, share) in SERIES.items():
        values = [record[name] for record in after]
        middle, low, high = slope([record["minutes"] for record in after], values)
        level = float(np.median(values))
        allowed = 1.0 if share is None else share * level
        judged[name] = {
            "level": round(level, 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
            "rise_per_hour": round(middle, 3),
            "ci95": [round(low, 3), round(high, 3)],
            "allowed": round(allowed, 3),
            "verdict": verdict_of(low, high, allowed),
        }
    return judged


# The run


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def training(folder: Path, settings: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A run in `folder`, what it prints in `folder.log`; killed at the end of the body if it is still there."""
    words = [sys.executable, "-m", "hrm_agent.train", *settings, f"hydra.run.dir={folder}"]
    with open(folder.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            words, cwd=folder.parent, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def lines_of(folder: Path) -> list[Record]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def frames_per_second(folder: Path, settings: Sequence[str]) -> float:
    """Speed of training alone, after `CALIBRATION` seconds of it."""
    short = [f"max_seconds={CALIBRATION:g}", "eval_episodes=10", "log_every=1000"]
    with training(folder, [*settings, *short]) as process:
        if process.wait() != 0:
            raise RuntimeError(f"the run that finds the speed failed: {folder.with_suffix('.log').read_text()}")
    return [line for line in lines_of(folder) if "train/frames_per_second" in line][-1]["train/frames_per_second"]


def videos_in(folder: Path) -> int:
    """Videos in the TensorBoard files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted((folder / "tensorboard").glob("events*"))
    values = [value for file in files for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    return sum(value.metadata.plugin_data.plugin_name == "images" for value in values)


def watch(process: subprocess.Popen[bytes], folder: Path, minutes: float, every: float) -> list[Record]:
    """Samples from the first numbers of the training on, for so many minutes."""
    while process.poll() is None and not lines_of(folder):
        time.sleep(1)
    began, samples = time.monotonic(), []
    while process.poll() is None:
        passed = time.monotonic() - began
        if found := sample(process.pid):
            rounded = {name: round(value, 1) for name, value in found.items()}
            samples.append({"minutes": round(passed / 60, 3), **rounded})
        if passed >= 60 * minutes:
            return samples
        time.sleep(max(0.0, min(every, 60 * minutes - passed)))
    raise RuntimeError(f"training ended after {len(samples)} samples: {folder.with_suffix('.log').read_text()[-2000:]}")


def soak(minutes: float, every: float, seed: int, more: Sequence[str]) -> tuple[Record, list[Record]]:
    """The run: what is to be said of it, and the samples."""
    load = machine.load()
    settings = [*COMMAND, f"seed={seed}", *more]
    with tempfile.TemporaryDirectory() as made:
        speed = frames_per_second(Path(made) / "speed", settings)
        each_minute = max(1, round(60 * speed))
        due = [f"{name}={each_minute}" for name in ("eval_every", "video_every", "checkpoint_every")]
        folder = Path(made) / "run"
        with training(folder, [*settings, *due]) as process:
            samples = watch(process, folder, minutes, every)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=300)
        lines = lines_of(folder)
        validations = [line for line in lines if "validation/success" in line]
        said = folder.with_suffix(".log").read_text().splitlines()[-1].replace(made, "")
        result = {
            "command": machine.command(),
            "started": " ".join(["python -m hrm_agent.train", *settings, *due]),
            "seed": seed,
            "machine": machine.cores_and_kind(),
            "processor": machine.processor(),
            "load": load,
            "commit": machine.commit_of_code(),
            "minutes": minutes,
            "every_seconds": every,
            "frames": lines[-1]["frames"],
            "validations": len(validations),
            "videos": videos_in(folder),
            "checkpoints_kept": len(list((folder / "checkpoints").glob("*.safetensors"))),
            "success_last": validations[-1]["validation/success"] if validations else None,
            "exit_code": code,
            "last_line": said,
        }
    return result, samples


# The figure


def draw(folder: Path) -> None:
    """`soak.png` from the two files."""
    result, samples = json.loads((folder / "soak.json").read_text()), load_records(folder / "soak_samples.json")
    minutes = [record["minutes"] for record in samples]
    figure, axes = panels(2, 1, size=(8, 6), sharex=True)
    for ax, names in zip(axes, (("uss_mb", "rss_mb"), ("descriptors", "threads")), strict=True):
        for number, name in enumerate(names):
            ax.plot(minutes, [record[name] for record in samples], color=f"C{number}", lw=1.2, label=SERIES[name][0])
        ax.axvspan(0, result["warm_up_minutes"], color="0.9", label="warm-up")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.25)
        ax.legend(loc="lower right", fontsize=8)
    axes[1].yaxis.get_major_locator().set_params(integer=True)
    axes[1].set_xlabel("minutes of training, validation and videos")
    save(figure, folder / "soak.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the two files and the figure")
    parser.add_argument("more", nargs="*", metavar="KEY=VALUE", help="other settings of the training")
    given = parser.parse_intermixed_args()
    warm_up = max(SHORTEST_WARM_UP, WARM_UP_SHARE * given.minutes)
    if given.minutes < warm_up + 3:
        parser.error(f"--minutes {given.minutes:g}: expected {SHORTEST_WARM_UP + 3:g} or more, warm-up included")
    result, samples = soak(given.minutes, given.every, given.seed, given.more)
    result |= {"warm_up_minutes": warm_up, "series": judge(samples, warm_up)}
    given.out.mkdir(parents=True, exist_ok=True)
    save_records(given.out / "soak_samples.json", samples)
    machine.write(given.out / "soak.json", result)
    draw(given.out)
    for name, found in result["series"].items():
        rise = f"{found['rise_per_hour']:+} an hour {found['ci95']}"
        print(f"{SERIES[name][0]}: {found['level']}, {rise}: {found['verdict']}")
    if result["exit_code"] != 130 or any(found["verdict"] != "flat" for found in result["series"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
