"""Put the best model of a run into the package, measured and with its card.

    python -m experiments.supervised.ship maze_9-TRM-v0 --run runs/studies/supervised/maze_9_seed0
    python -m experiments.supervised.ship --measure [NAME ...]

The model that was best on validation puzzles is copied to `hrm_agent/supervised/models/NAME` and solves 1,000 test
puzzles from there; `model.json` and the card get the figures, `shipped.json` here the record, and the page its line.
`--measure` measures again what is in the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import hrm_agent
from experiments.engine.machine import commit_of_code, cores_and_kind
from experiments.engine.pages import draw
from experiments.engine.records import ROOT, Record, put
from hrm_agent.launch.solve import solve
from hrm_agent.supervised.card import evaluation_facts, write_description
from hrm_agent.supervised.files import read_info
from hrm_agent.supervised.registry import ID, shipped
from hrm_agent.train import run_facts
from hrm_agent.training.model_folder import MODEL_FILE, find_model

HERE = Path(__file__).resolve().parent
MODELS = ROOT / "hrm_agent" / "supervised" / "models"
PUZZLES = 1000
LIMIT = 1_000_000
"""Bytes of all models in the package together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="maze_9-TRM-v0, say")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a finished run of hrm_agent.supervise")
    parser.add_argument("--measure", action="store_true", help="measure models in the package again")
    given = parser.parse_args()
    commit = commit_of_code()  # before anything is written to the package
    if given.run is not None:
        if len(given.names) != 1 or given.measure:
            parser.error("--run takes one NAME, and no --measure")
        try:
            pack(given.names[0], given.run)
        except ValueError as error:
            parser.error(str(error))
    elif not given.measure:
        parser.error("give --run FOLDER, or --measure")
    if unknown := [name for name in given.names if name not in shipped()]:
        parser.error(f"{unknown[0]}: not in the package; known: {', '.join(shipped()) or 'none'}")
    for name in given.names or shipped():
        put(HERE / "shipped.json", [{**measure(name), "commit": commit}], ["agent"])
    draw(HERE)


def pack(name: str, run: Path, models: Path = MODELS) -> Path:
    """Copy the run's best model and what is known of its training; returns the folder.

    Raises:
        ValueError: a malformed name, no model there, or more in the package than may ship.
    """
    if ID.fullmatch(name) is None:
        raise ValueError(f"{name}: expected a name such as maze_9-TRM-v0")
    file, folder = find_model(run, best=True), models / name
    others = sum(f.stat().st_size for f in models.rglob("*") if f.is_file() and folder not in f.parents)
    if others + file.stat().st_size > LIMIT:
        raise ValueError(f"{name}: {others + file.stat().st_size:,} bytes of models, expected at most {LIMIT:,}")
    info = {**read_info(file.parent), **run_facts(run), "id": name, "license": "mit"}
    cost = run / "study.json"  # of a run that a study trained
    info["commit"] = json.loads(cost.read_text())["commit"] if cost.exists() else commit_of_code()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / MODEL_FILE)
    write_description(folder, info)
    return folder


def measure(name: str) -> Record:
    """Solve test puzzles with a model as it lies in the package, put that into its card; returns its record."""
    folder = shipped()[name]
    report = solve(str(folder), puzzles=PUZZLES)  # by its folder: what ships was read when this process began
    info: dict[str, Any] = {**read_info(folder), "evaluation": evaluation_facts(report)}
    write_description(folder, info)
    taken = ("task", "task_options", "core", "seed", "steps", "samples", "seconds", "clock", "parameters", "command")
    return {
        "agent": name,
        **{key: info[key] for key in taken},
        "test": info["evaluation"],
        "trained_at": info["commit"],
        "machine": cores_and_kind(),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "hrm_agent_version": hrm_agent.__version__,
    }


if __name__ == "__main__":
    main()
