"""Train, score and record what `study.yaml` lists and `results.json` lacks, then redraw page and figure.

    python -m experiments.language.run [--text FILE] [--jobs 2] [--only NAME ...] [--list] [--draw-only]

`--text` is a text in UTF-8; without it the default corpus of `task=text` is read. Records say which text they are of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine import runner
from experiments.engine.machine import commit_of_code
from experiments.engine.records import Record
from experiments.engine.runner import Job, refuse
from experiments.engine.runs import cost_of, metrics, run_python
from experiments.language.ngram import SAMPLE, SPLITS, measure_ngram
from hrm_agent.launch.generate import generate
from hrm_agent.launch.solve import solve

HERE = Path(__file__).resolve().parent
REQUIRED = frozenset({
    "agent", "algo", "text", "form", "seed", "parameters", "tokens_read", "seconds", "nats", "bits", "perplexity",
    "validation", "test", "curve", "command", "commit",
})  # fmt: skip
DEFAULT_TEXT = "default"
SCORED = ("nats", "bits", "perplexity", "cells", "tokens", "nats_ci95", "bits_ci95")


class Study(runner.Study):
    """Language models of several kinds on one text.

    Attributes:
        text: path of the text; None: the default corpus.
    """

    module = "hrm_agent.supervise"
    finished = "models/last/model.safetensors"
    key = ("agent", "seed", "text")
    order = ("text", "agent", "seed")
    required = REQUIRED
    text: Path | None = None

    @property
    def name(self) -> str:
        """Of the text, in records."""
        return DEFAULT_TEXT if self.text is None else self.text.name

    def jobs(self, seeds: Sequence[int] | None = None) -> list[Job]:
        return [job._replace(world=self.name) for job in super().jobs(seeds)]

    def place(self, job: Job) -> Path:
        return super().place(job._replace(world=job.world.replace(".", "_")))

    def is_trained(self, place: Path) -> bool:
        return (place / self.finished).exists() or (place / "result.json").exists()

    def overrides(self, job: Job) -> list[str]:
        own = [*self.settings["base"], *self.arm(job.arm)["overrides"]]
        text = [] if self.text is None else [f"task.path={self.text}"]
        return [*own, f"max_seconds={self.settings['seconds']}", f"seed={job.seed}", *text]

    def measure(self, job: Job) -> list[Record]:
        arm = self.arm(job.arm)
        found: Record = {"supervise": self._supervised, "recurrent": self._recurrent, "ngram": self._ngram}[
            arm["kind"]
        ](job)
        scores = found.pop("scores")
        record = {
            "agent": job.arm,
            "algo": arm["kind"],
            "form": arm["form"],
            "text": self.name,
            "sha256": digest(self.text),
            "seed": job.seed,
            **whole(scores),
            **{split: {name: scores[split][name] for name in SCORED if name in scores[split]} for split in SPLITS},
            **found,
        }
        record["command"] = without_folder(record["command"], self.text)
        if job.seed:
            record.pop("sample", None)
        return [record]

    def summary(self, record: Record) -> str:
        return f"{record['nats']:.3f} nats, {record['bits']:.3f} bits after {record['seconds']:.0f} s"

    def _supervised(self, job: Job) -> Record:
        place = self.trained(job)
        info = json.loads((place / "models" / "last" / "model.json").read_text())
        options = None if self.text is None else {"path": str(self.text)}
        reports = {
            split: solve(str(place), task_options=options, split=split, puzzles=10**7, best=False) for split in SPLITS
        }
        return {
            **{name: info[name] for name in ("core", "parameters", "steps", "seconds", "kernel", "instruction_set")},
            "tokens_read": info["samples"] * info["task_options"]["context"],
            "segments": info["max_segments"],
            "scores": reports,
            "by_segments": reports["test"]["curves"]["bits"],
            "curve": curve_of(metrics(place)),
            "sample": "".join(generate(str(place), length=SAMPLE, best=False)),
            **cost_of(place, side_by_side=self.side_by_side),
        }

    def _recurrent(self, job: Job) -> Record:
        place, settings = self.place(job), self.arm(job.arm)["settings"]
        result = place / "result.json"
        given = ["--seed", str(job.seed), "--seconds", str(self.settings["seconds"])]
        given += ["--settings", json.dumps(settings, sort_keys=True)]
        if not result.exists():
            place.mkdir(parents=True, exist_ok=True)
            words = [job.arm, *self._text(), *given, "--out", str(result)]
            run_python(place, ["-m", "experiments.language.recurrent", *words])
        command = self._command("recurrent", job.arm, *given)
        return {**json.loads(result.read_text()), "command": command, "commit": commit_of_code()}

    def _ngram(self, job: Job) -> Record:
        order = self.arm(job.arm)["order"]
        found = measure_ngram(None if self.text is None else str(self.text), order)
        return {**found, "command": self._command("ngram", "--order", str(order)), "commit": commit_of_code()}

    def _text(self) -> list[str]:
        return [] if self.text is None else ["--text", str(self.text)]

    def _command(self, module: str, *words: str) -> str:
        """What repeats a measurement by a module of this folder, with the text by its name."""
        text = [] if self.text is None else ["--text", self.text.name]
        command = ["python", "-m", f"experiments.language.{module}", *words, *text, "--out", "result.json"]
        return shlex.join(command)


def whole(scores: dict[str, Any]) -> dict[str, float]:
    """Scores of validation and test parts together, the whole last tenth of the text."""
    tokens = sum(scores[split]["tokens"] for split in SPLITS)
    nats = sum(scores[split]["nats"] * scores[split]["tokens"] for split in SPLITS) / tokens
    return {"nats": nats, "bits": float(nats / np.log(2)), "perplexity": float(np.exp(nats))}


def curve_of(lines: list[dict[str, Any]]) -> list[list[float]]:
    """Seconds of training, and bits on validation windows; the seconds are those of the nearest line that has them."""
    timed = {line["steps"]: line["train/seconds"] for line in lines if "train/seconds" in line}
    curve = []
    for line in (line for line in lines if timed and "validation/bits" in line):
        nearest = min(timed, key=lambda steps: abs(steps - line["steps"]))
        curve.append([round(timed[nearest] * line["steps"] / nearest, 1), round(line["validation/bits"], 4)])
    return curve


def digest(text: Path | None) -> str | None:
    """Beginning of a text's SHA-256, so that records can be told apart from those of another edition."""
    return None if text is None else hashlib.sha256(text.read_bytes()).hexdigest()[:16]


def without_folder(command: str, text: Path | None) -> str:
    """A command with the text's name in place of its path on this machine."""
    return command if text is None else command.replace(str(text), text.name)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--text", type=Path)
    given, rest = parser.parse_known_args()
    if given.text is not None and not given.text.is_file():
        refuse(f"--text {given.text}: no such file; give a text in UTF-8")
    Study.text = None if given.text is None else given.text.resolve()
    sys.argv[1:] = rest
    runner.main(Study, HERE)


if __name__ == "__main__":
    main()
