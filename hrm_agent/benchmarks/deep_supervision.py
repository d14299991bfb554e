"""Suite `segment`: a step of deep supervision."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch

from hrm_agent.benchmarks.cases import CHECKED_ROWS, Case, Competitor, Options, Outputs
from hrm_agent.benchmarks.paths import put_on
from hrm_agent.benchmarks.training import gradients
from hrm_agent.evaluation.cost import count_operations
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.launch.supervised_settings import settings
from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised.deep_supervision import DeepSupervision, to_batch
from hrm_agent.supervised.files import build_puzzle_model
from hrm_agent.supervised.losses import puzzle_loss
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.base import Task


def segment(options: Options) -> Iterator[Case]:
    """One step of deep supervision of `python -m hrm_agent.supervise`: a segment for each of 64 mazes."""
    rows = 8 if options.quick else 64
    config = resolve(compose_config(["threads=1", f"training.batch_size={rows}"], "supervise"))
    run, model_config, training = settings(config)
    task = build_task(run.task, run.task_options, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_puzzle_model(model_config, task.spec)

    def make(path: str) -> Competitor:
        own = copy.deepcopy(model)
        put_on(own, path)
        learner = DeepSupervision(own, training, task.draw, 0, Threads(options.cores))

        def outputs(seed: int) -> Outputs:
            return supervised_segment(own, task, seed)

        # At the end of a run learning rates are 0: the same work, but the weights stay.
        return Competitor(lambda: learner.step(1.0), outputs)

    operations = rows * count_operations(lambda: supervised_segment(model, task, 0)) // CHECKED_ROWS
    name = f"supervised {run.task}, batch {rows}"
    yield Case("segment", name, make, options.paths, operations, rows, "samples", cores=options.cores)


def supervised_segment(model: PuzzleModel, task: Task, seed: int) -> Outputs:
    """Logits of a few new puzzles after one segment, the loss and its gradient."""
    batch = to_batch(task.draw(np.random.default_rng(seed), CHECKED_ROWS), torch.device("cpu"))
    _, logits, q_halt, _ = model(model.initial_state(CHECKED_ROWS), batch)
    loss = puzzle_loss(logits, q_halt, batch["labels"]).total / CHECKED_ROWS
    return {"logits": logits, "loss": loss, **gradients(loss, model)}
