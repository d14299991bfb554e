"""The published recipe of TRM and HRM, written plainly: what `hrm_agent.supervised` is measured against.

Eager, the whole batch at once, torch's own threads; every part is what the papers and their code say, written anew: the
blocks and the optimizer are those of `hrm_agent.benchmarks.published`, and here are the mixing over positions,
stablemax in double precision, and a full new batch at every step that `where` mixes into the carry. `dtype` is what
matrix products are cast to, float32 or (as published) bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.benchmarks.published import PublishedLayer, PublishedOptimizer, normed, weights_of
from hrm_agent.supervised.model import PuzzleModel

BETAS = (0.9, 0.95)


class PositionLayer(nn.Module):
    """A SwiGLU over positions, then one over channels, both normed after the residual."""

    def __init__(self, ours: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        names = ("mixer.swiglu.gate_up", "mixer.swiglu.down", "mlp.gate_up", "mlp.down")
        self.weights = nn.ParameterList(ours.get_parameter(f"{name}.weight").detach().clone() for name in names)

    def swiglu(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = F.linear(x, gate_up.to(self.dtype)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down.to(self.dtype))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = normed(x + self.swiglu(x, self.weights[0], self.weights[1])).transpose(1, 2)
        return normed(x + self.swiglu(x, self.weights[2], self.weights[3]))


class PlainModel(nn.Module):
    """TRM or HRM with the weights of one of ours, whose shape it takes."""

    def __init__(self, ours: PuzzleModel, mixing: str, heads: int, matrices: torch.dtype) -> None:
        super().__init__()
        core = ours.core
        self.matrices, self.prefix, self.scale = matrices, ours.prefix, ours.scale
        self.H_cycles, self.L_cycles = core.H_cycles, core.L_cycles
        self.is_trm = not hasattr(core, "H_net")

        def stack(net: nn.Module) -> nn.ModuleList:
            if mixing == "mlp":
                return nn.ModuleList(PositionLayer(layer, matrices) for layer in net.layers)
            return nn.ModuleList(PublishedLayer(*weights_of(layer), matrices) for layer in net.layers)

        self.L_level = stack(core.net if self.is_trm else core.L_net)
        self.H_level = self.L_level if self.is_trm else stack(core.H_net)
        self.tokens = nn.Parameter(ours.tokens.weight.detach().clone())
        self.lm_head = nn.Parameter(ours.lm_head.weight.detach().clone())
        self.q_head = nn.Parameter(ours.halting_head.weight.detach().clone())
        self.q_bias = nn.Parameter(ours.halting_head.bias.detach().clone())
        self.z_H, self.z_L = core.z_H_init, core.z_L_init
        size = core.hidden_size // heads
        angles = torch.outer(torch.arange(core.length), 10_000 ** -(torch.arange(0, size, 2) / size))
        self.cos, self.sin = (f(torch.cat((angles, angles), -1)).unsqueeze(-2) for f in (torch.cos, torch.sin))

    def level(self, layers: nn.ModuleList, z: Tensor, injected: Tensor) -> Tensor:
        z = z + injected
        for layer in layers:
            z = layer(z, self.cos, self.sin)
        return z

    def forward(self, z_H: Tensor, z_L: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = F.embedding(inputs, self.tokens)
        x = self.scale * F.pad(x, (0, 0, self.prefix, 0)).to(self.matrices)  # a zero puzzle embedding
        with torch.no_grad():
            for cycle in range(self.H_cycles):
                for step in range(self.L_cycles):
                    if self.is_trm and cycle == self.H_cycles - 1:
                        break
                    if not (cycle == self.H_cycles - 1 and step == self.L_cycles - 1):
                        z_L = self.level(self.L_level, z_L, z_H + x)
                if cycle < self.H_cycles - 1:
                    z_H = self.level(self.H_level, z_H, z_L)
        for _ in range(self.L_cycles if self.is_trm else 1):
            z_L = self.level(self.L_level, z_L, z_H + x)
        z_H = self.level(self.H_level, z_H, z_L)
        logits = F.linear(z_H, self.lm_head.to(self.matrices))[:, self.prefix :]
        q = F.linear(z_H[:, 0].float(), self.q_head, self.q_bias)
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
        length = model.cos.shape[0]
        self.z_H = torch.empty(batch, length, len(model.z_H), dtype=model.matrices)
        self.z_L = torch.empty_like(self.z_H)
        self.inputs, self.labels = (torch.zeros_like(t) for t in draw())

    def step(self) -> float:
        inputs, labels = self.draw()
        fresh = self.halted.view(-1, 1, 1)
        z_H = torch.where(fresh, self.model.z_H.to(self.z_H.dtype), self.z_H)
        z_L = torch.where(fresh, self.model.z_L.to(self.z_L.dtype), self.z_L)
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
