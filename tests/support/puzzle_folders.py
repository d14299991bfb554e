"""A model of tiny mazes in a folder, as a run of `supervise` leaves it, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrm_agent.supervised import ModelConfig, build_model, save_model
from hrm_agent.supervised.evaluation import Solver
from hrm_agent.supervised.files import INFO_FILE
from hrm_agent.supervised.tasks import build_task
from puzzles import TRM

OPTIONS = {"rows": 3, "cols": 3, "loops": 0.0, "label_border": False}


def write_puzzle_model(folder: Path, seed: int = 0, **info: Any) -> Path:
    """Some of its puzzles halt early and others do not."""
    task = build_task("maze", OPTIONS)
    torch.manual_seed(seed)
    config = ModelConfig("trm", TRM, 8)
    model = build_model(config, task.spec)
    with torch.no_grad():
        model.halting_head.weight.normal_(std=2.0)
        model.halting_head.bias.zero_()
        model.halting_head.bias[0] = -float(np.median(Solver(model, 2)(task.examples("test", 40)).q_halt))
    save_model(folder, model, config, task.spec)
    about = {"task": "maze", "task_options": OPTIONS, "core": "trm", "seed": 0, "steps": 5, "samples": 40,
             "max_segments": 4, "halting": "halt_only", "precision": "float32",
             "parameters": sum(p.numel() for p in model.parameters()), **info}  # fmt: skip
    (folder / INFO_FILE).write_text(json.dumps(about))
    return folder
