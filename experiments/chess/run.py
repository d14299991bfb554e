"""Make positions, train and judge what `study.yaml` lists and `results.json` lacks, then redraw page and figures.

    python -m experiments.chess.run [--jobs 2] [--only NAME ...] [--list | --draw-only]

The positions are made first, into `runs/studies/chess/positions.jsonl`; a UCI engine is needed (Debian: `apt install
stockfish`). A record is the run's own evaluation on test positions (`eval.json`), what it cost, and, of positions of
the file, the engine's judgement after every segment and games (`judge.py`).
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chess.judge import judge
from experiments.engine import runner
from experiments.engine.records import ROOT, RUNS, Record, put
from experiments.engine.runner import Job
from experiments.engine.runs import Curve, cost_of, metrics
from hrm_agent.chess_positions import chess_positions
from hrm_agent.supervised.chess.board import Position, start_and_end
from hrm_agent.supervised.chess.engine import EngineError
from hrm_agent.supervised.evaluation import Solver
from hrm_agent.supervised.files import load_model
from hrm_agent.supervised.tasks.chess import ChessTask

HERE = Path(__file__).resolve().parent
FILE = RUNS / "chess" / "positions.jsonl"
JUDGED = "judged"
_MAKING = threading.Lock()
SHOWN = 3
"""Positions in the figure of boards."""
REQUIRED = frozenset({
    "agent", "algo", "task", "core", "seed", "world", "parameters", "steps", "seconds", "clock", "command", "commit",
    "test", "curve",
})  # fmt: skip


class Study(runner.Study):
    """Runs of `hrm_agent.supervise` on endgames and on judged positions."""

    module = "hrm_agent.supervise"
    finished = "eval.json"
    key = ("agent", "seed", "world")
    order = ("world", "agent", "seed")
    required = REQUIRED

    def overrides(self, job: Job) -> list[str]:
        if job.world == JUDGED:
            own = [f"task.source={self.file().relative_to(ROOT)}"]  # runs begin in the checkout's root
        else:
            own = [f"task.{name}={value}" for name, value in self.settings["worlds"][job.world].items()]
        return [*self.settings["base"].split(), *self.arm(job.arm)["overrides"].split(), *own, f"seed={job.seed}"]

    def file(self) -> Path:
        """The file of positions, made where it is not complete."""
        with _MAKING:  # runs side by side ask for it at once
            FILE.parent.mkdir(parents=True, exist_ok=True)
            try:
                chess_positions(str(FILE), **self.settings["positions"])
            except (EngineError, ValueError) as error:
                runner.refuse(str(error))
        return FILE

    def measure(self, job: Job) -> list[Record]:
        place = self.trained(job)
        info = json.loads((place / "models" / "last" / "model.json").read_text())
        same = ("core", "seed", "parameters", "steps", "samples", "seconds", "clock", "kernel", "instruction_set")
        record: dict[str, Any] = {
            "agent": job.arm,
            "world": job.world,
            "algo": "supervised",
            **{key: info[key] for key in ("task", *same)},
            "puzzles_drawn": info["puzzles"],
            **cost_of(place, side_by_side=self.side_by_side),
            "test": json.loads((place / "eval.json").read_text()),
            "curve": scores(metrics(place)),
        }
        if job.world == JUDGED:
            judged = judge(str(place), str(self.file()), str(place / "judged.json"), **self.settings["judge"])
            record["judged"] = {name: judged[name] for name in ("positions", "nodes", "engine", "segments", "games")}
            if job.arm == "trm" and job.seed == min(self.arm(job.arm)["seeds"]):
                put(self.folder / "shown.json", answers_shown(place), ("agent", "number"))
        return [record]

    def summary(self, record: Record) -> str:
        return f"exact {record['test']['exact']:.3f} after {record['seconds']:.0f} s"


def scores(lines: list[dict]) -> Curve:
    """Steps, and the share of best moves among validation positions."""
    return [[s["steps"], round(s["validation/exact"], 4)] for s in lines if "validation/exact" in s]


def answers_shown(place: Path) -> list[Record]:
    """Test positions whose answer changes between the segments, with the answer after each, for the figure."""
    info = json.loads((place / "models" / "last" / "model.json").read_text())
    solve, task = Solver(load_model(place), info["max_segments"]), ChessTask(source=str(FILE))
    examples = task.examples("test", 300)
    tokens = solve(examples).tokens[:, :, 0]
    best = examples.labels[np.arange(len(examples)), examples.weights.argmax(1)] if examples.weights is not None else []
    found = [n for n in range(len(examples)) if tokens[0, n] != tokens[-1, n] == best[n]][:SHOWN]
    return [
        {
            "agent": "trm",
            "number": number,
            "rows": Position(examples.inputs[n].astype(np.uint8), True).letters(),
            "answers": [list(start_and_end(int(move))) for move in tokens[:, n]],
            "best": list(start_and_end(int(best[n]))),
        }
        for number, n in enumerate(found)
    ]


if __name__ == "__main__":
    runner.main(Study, HERE)
