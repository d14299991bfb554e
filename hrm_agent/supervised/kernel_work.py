"""`kernel=auto` for a puzzle model: only its core is measured; everything else costs the same on all paths."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hrm_agent.cores import Core, map_state
from hrm_agent.cores.base import State
from hrm_agent.parallel.threads import Threads, available_cores
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import candidates, run_segments, use
from hrm_agent.recurrence.agreement import Outputs
from hrm_agent.recurrence.kernel_timing import Choice, Job, Size, measure
from hrm_agent.supervised.deep_supervision import autocast
from hrm_agent.supervised.evaluation import EVALUATION_BATCH
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.streams import AT_ONCE
from hrm_agent.training.kernel_work import Passes, measure_policy, path_of_training

CHECKED_ROWS = 2


def measure_model(
    model: PuzzleModel,
    paths: Sequence[str],
    rows: int,
    threads: Threads,
    precision: str = "float32",
    training: bool = True,
    now: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The fastest path for a segment of a batch; the model is not changed.

    Args:
        paths: see `hrm_agent.recurrence.candidates`.
        rows: of a batch.
        threads: threads that it is split over.
        precision: of the matrix products, see `SupervisedConfig`.
        training: with the gradient.
        now: the clock, in seconds.
    """
    device = model.lm_head.weight.device
    largest = model.chunk_size

    def run(model: PuzzleModel, size: Size) -> None:
        tokens, state = _draw(model.core, size.rows)
        parameters = [p for p in model.core.parameters() if p.requires_grad]

        def part(at: slice) -> None:
            with torch.set_grad_enabled(training), autocast(precision, device):  # grad mode is per thread
                y, _ = run_segments(model.core, tokens[at], map_state(lambda s: s[at], state), 1, model.backend)
            if training:
                torch.autograd.grad(y.float().square().sum(), parameters, allow_unused=True)

        threads.map(part, threads.slices(size.rows, largest))

    def outputs(model: PuzzleModel, _: str) -> Outputs:
        core = model.core
        names, parameters = zip(*((n, p) for n, p in core.named_parameters() if p.requires_grad), strict=True)
        tokens, state = _draw(core, CHECKED_ROWS)
        exact = next(core.parameters()).dtype == torch.float64
        with torch.set_grad_enabled(training), autocast("float32" if exact else precision, device):
            y, after = run_segments(core, tokens, state, 1, model.backend)
        found = {"output": y, **{f"state {i}": s for i, s in enumerate(after)}}
        if training:
            weights = torch.arange(y.numel(), dtype=torch.float64).cos().view_as(y).to(y)
            given = torch.autograd.grad((y * weights).sum(), parameters, allow_unused=True)
            found |= {
                n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, given, strict=True)
            }
        return found

    return measure(model, paths, [Job(run, Size(1, 1, rows), 1.0, threads.count)], outputs, now)


def choose_for_solving(
    model: PuzzleModel | Policy, kernel: str, puzzles: int, precision: str, info: Mapping[str, Any]
) -> str:
    """Set the path of a model that is only evaluated.

    Args:
        kernel: of `hrm_agent.recurrence.CHOICES`. `auto` takes the path of training where the instruction set is the
            same, and otherwise measures a segment.
        puzzles: their number.
        precision: see `measure_model`.
        info: the model's metadata.

    Returns:
        The path in use.
    """
    if kernel != "auto":
        return use(model, kernel)
    paths = candidates(model, next(model.parameters()).device)
    trained_with = path_of_training(info)
    if trained_with in paths:
        return use(model, trained_with)
    if isinstance(model, Policy):
        one = torch.zeros(1, dtype=torch.int64)
        return use(model, measure_policy(model, paths, [Passes(1, AT_ONCE, 1)], one, Threads(1)).path)
    rows = min(puzzles, EVALUATION_BATCH)
    return use(model, measure_model(model, paths, rows, Threads(available_cores()), precision, training=False).path)


def _draw(core: Core, rows: int) -> tuple[Tensor, State]:
    """Tokens and latents of unit variance, as norms leave them; equal for equal sizes."""
    generator = torch.Generator().manual_seed(0)
    like = next(core.parameters())
    tokens = torch.randn(rows, core.length, core.hidden_size, generator=generator).to(like)
    state = map_state(lambda s: torch.randn(s.shape, generator=generator).to(s), core.initial_state(rows))
    return tokens, state
