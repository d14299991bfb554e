"""The published recipe of TRM and HRM, written plainly: what `hrm_agent.supervised` is measured against.

Eager, the whole batch at once, torch's own threads; every part is what the papers and their code say, written anew: the
segment and the optimizer are those of `hrm_agent.benchmarks.published`, and here are stablemax in double precision, and
a full new batch at every step that `where` mixes into the carry. `dtype` is what matrix products are cast to, float32
or (as published) bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.benchmarks.published import PublishedOptimizer, published_segment
from hrm_agent.supervised.model import PuzzleModel

BETAS = (0.9, 0.95)


class PlainModel(nn.Module):
    """TRM or HRM on a copy of the weights of one of ours."""

    def __init__(self, ours: PuzzleModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.ours, self.dtype = copy.deepcopy(ours), dtype

    def forward(self, z_H: Tensor, z_L: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ours = self.ours
        x = F.embedding(inputs, ours.tokens.weight)
        x = ours.scale * F.pad(x, (0, 0, ours.prefix, 0)).to(self.dtype)  # a zero puzzle embedding
        z_H, z_L = published_segment(ours.core, x, (z_H, z_L))
        logits = F.linear(z_H, ours.lm_head.weight.to(self.dtype))[:, ours.prefix :]
        q = F.linear(z_H[:, 0].float(), ours.halting_head.weight, ours.halting_head.bias)
        return z_H.detach(), z_L.detach(), logits, q


def stablemax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    x = logits.to(torch.float64)
    s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    log_probabilities = torch.log(s / s.sum(dim=-1, keepdim=True))
    return -log_probabilities.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)


class PlainTraining:
    """Deep supervision, halting and optimizer as published; the same call as `DeepSupervision.step`.

    Args:
        draw: gives a full batch `(inputs, labels)`, int64[B, L] each.
    """

    def __init__(
        self,
        model: PlainModel,
        batch: int,
        draw: Callable[[], tuple[Tensor, Tensor]],
        q_learning: bool,
        **settings: float,
    ) -> None:
        self.model, self.draw, self.q_learning = model, draw, q_learning
        self.optimizer = PublishedOptimizer(
            list(model.parameters()), settings["learning_rate"], settings["weight_decay"], BETAS, settings["ema"]
        )
        self.halted = torch.ones(batch, dtype=torch.bool)
        self.steps = torch.zeros(batch, dtype=torch.int32)
        core = model.ours.core
        self.initial = core.z_H_init.to(model.dtype), core.z_L_init.to(model.dtype)
        self.z_H, self.z_L = torch.empty(2, batch, core.length, core.hidden_size, dtype=model.dtype)
        self.inputs, self.labels = (torch.zeros_like(t) for t in draw())

    def step(self) -> float:
        inputs, labels = self.draw()
        fresh = self.halted.view(-1, 1, 1)
        z_H, z_L = (torch.where(fresh, *pair) for pair in zip(self.initial, (self.z_H, self.z_L), strict=True))
        self.steps = torch.where(self.halted, 0, self.steps)
        self.inputs = torch.where(self.halted.view(-1, 1), inputs, self.inputs)
        self.labels = torch.where(self.halted.view(-1, 1), labels, self.labels)
        self.z_H, self.z_L, logits, q = self.model(z_H, z_L, self.inputs)
        q_halt, q_continue = q[:, 0], q[:, 1]
        self.steps = self.steps + 1
        with torch.no_grad():
            last = self.steps >= 16
            self.halted = last | (q_halt > (q_continue if self.q_learning else 0))
            least = (torch.rand(len(q)) < 0.1) * torch.randint(2, 17, (len(q),))
            self.halted = self.halted & ((self.steps >= least) | last)
            exact = (logits.argmax(-1) == self.labels).all(-1)
        loss = (stablemax_loss(logits, self.labels).mean(-1)).sum()
        halting = F.binary_cross_entropy_with_logits(q_halt, exact.to(q.dtype), reduction="sum")
        if self.q_learning:
            with torch.no_grad():
                *_, following = self.model(self.z_H, self.z_L, self.inputs)
                target = torch.where(last, following[:, 0], following.amax(-1)).sigmoid()
            halting = halting + F.binary_cross_entropy_with_logits(q_continue, target, reduction="sum")
        total = (loss + 0.5 * halting) / len(q)
        self.optimizer.step(total)
        return total.item()
