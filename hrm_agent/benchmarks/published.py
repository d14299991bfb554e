"""The published recipe of HRM, TRM and HRM-Agent's network in plain torch: the reference for measurements of speed.

It follows the papers (arXiv 2506.21734 for HRM, 2510.04871 for TRM, 2510.22832 for HRM-Agent) and the settings of their
authors' code, but is our own: eager, the whole batch at once, torch's own threads, weights cast to the dtype of the
activations wherever they are used, norms and rotary positions in float32, one loop over the parameters for AdamATan2
and one for the average. It computes on copies of our cores, of which it uses nothing but the weights.

HRM-Agent's heads and embeddings have the published sizes (131 glyphs, 541,186 parameters), though only four Q-values
are read; the puzzle embedding is the one prefix token, which the authors train separately and which stays fixed here.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores import HRM, TRM
from hrm_agent.cores.blocks import Angles
from hrm_agent.policies.encoders import GridEncoder, PrefixedEncoder
from hrm_agent.policies.policy import Policy

GLYPHS = 131
"""Observations and answers share NetHack's vocabulary in the authors' code; the first four answers are Q-values."""
ACTIONS = 4
BETAS = (0.9, 0.999)
LEARNING_RATE = 1e-4
TARGET_AVERAGE = 0.999

Latents = tuple[Tensor, Tensor]
"""`z_H` and `z_L`, each `[B, L, D]`."""


def published_segment(core: Any, x: Tensor, latents: Latents) -> Latents:
    """One segment of HRM or TRM, in the dtype of its input.

    Gradients reach the last update of either latent in HRM, the whole last outer cycle in TRM.

    Args:
        core: `HRM` or `TRM` with mixing `attention` or `mlp`.
        x: the tokens, `[B, L, D]`.
    """
    z_H, z_L = latents
    angles = core.rotary()
    trained = core.L_cycles if isinstance(core, TRM) else 1  # updates of z_L
    with torch.no_grad():
        for cycle in range(core.H_cycles):
            if cycle:
                z_H = _run(core.high, z_H + z_L, angles)
            for _ in range(core.L_cycles - (trained if cycle == core.H_cycles - 1 else 0)):
                z_L = _run(core.low, z_L + (z_H + x), angles)
    for _ in range(trained):
        z_L = _run(core.low, z_L + (z_H + x), angles)
    return _run(core.high, z_H + z_L, angles), z_L


def _run(stack: Any, x: Tensor, angles: Angles | None) -> Tensor:
    """Attention or a SwiGLU over positions, then a SwiGLU over channels, each normed after its residual."""
    for block in stack.layers:
        if block.mixing == "mlp":
            x = x.transpose(1, 2)
            x = _normed(x + _swiglu(block.mixer.swiglu, x)).transpose(1, 2)
        else:
            x = _normed(x + _attention(block.mixer, x, angles))
        x = _normed(x + _swiglu(block.mlp, x))
    return x


def _attention(mixer: Any, x: Tensor, angles: Angles | None) -> Tensor:
    assert angles is not None
    batch, length, size = x.shape
    heads = mixer.num_heads
    query, key, value = _linear(mixer.qkv, x).view(batch, length, 3 * heads, size // heads).split(heads, dim=2)
    query, key = _rotated(query, *angles), _rotated(key, *angles)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value)
    return _linear(mixer.out, mixed.transpose(1, 2).reshape(batch, length, size))


def _swiglu(layer: Any, x: Tensor) -> Tensor:
    gate, up = _linear(layer.gate_up, x).chunk(2, dim=-1)
    return _linear(layer.down, F.silu(gate) * up)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype))


def _normed(x: Tensor) -> Tensor:
    """RMSNorm without a weight, in float32."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of `[B, L, heads, head_size]`, in float32."""
    wide = x.to(torch.float32)
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class PublishedAgent(nn.Module):
    """HRM-Agent's network with the weights of a policy.

    Args:
        policy: with an HRM core of attention, one prefix token, no crop or patches, and Q-values read from the last
            token (`+experiment=hrm_agent_maze`). The bias that its Q-values have, and the published ones have not, is
            left out.
        dtype: of activations and matrix products, float32 or (as published) bfloat16.

    Raises:
        TypeError: another encoder or core.
    """

    prefix: Tensor

    def __init__(self, policy: Policy, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        core, encoder = policy.core, policy.encoder
        if not (isinstance(core, HRM) and isinstance(encoder, PrefixedEncoder)):
            raise TypeError("the published network is an HRM behind one prefix token")
        grid = encoder.inner
        if not isinstance(grid, GridEncoder):
            raise TypeError("the published network sees a grid of ids")
        size = core.hidden_size
        self.dtype, self.scale = dtype, math.sqrt(size)
        self.segments, self.core = policy.segments, copy.deepcopy(core)
        # Published embeddings have a deviation of 1/sqrt(D) and are scaled by sqrt(D); ours have that of the product.
        self.embedding = nn.Parameter(torch.randn(GLYPHS, size) / self.scale)
        self.embedding.data[: grid.num_ids] = grid.embedding.detach()[: grid.num_ids] / self.scale
        self.answers = nn.Parameter(torch.randn(GLYPHS, size) / self.scale)
        self.answers.data[:ACTIONS] = policy.policy_head.weight.detach()
        self.halting = nn.Linear(size, 2)
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, -5.0)
        self.register_buffer("prefix", encoder.prefix.detach().clone() / self.scale)

    def seed(self, kept: Latents, episode_start: Tensor) -> Latents:
        """Latents before the first segment: what the last token kept, at every position; fresh in a new episode.

        Args:
            kept: each `[B, D]`.
            episode_start: bool `[B]`.
        """
        start, initial = episode_start.view(-1, 1, 1), (self.core.z_H_init, self.core.z_L_init)
        z_H, z_L = (
            torch.where(start, fresh, old.unsqueeze(1)).to(self.dtype).expand(-1, self.core.length, -1)
            for fresh, old in zip(initial, kept, strict=True)
        )
        return z_H, z_L

    def segment(self, ids: Tensor, latents: Latents) -> tuple[Tensor, Latents]:
        """One segment, see `published_segment`.

        Args:
            ids: integers `[B, cells]`.

        Returns:
            Q-values float32 `[B, 4]`, and the latents without a graph.
        """
        tokens = F.embedding(ids, self.embedding.to(self.dtype))
        x = self.scale * torch.cat([self.prefix.to(self.dtype).expand(len(ids), -1, -1), tokens], dim=1)
        z_H, z_L = published_segment(self.core, x, latents)
        logits = F.linear(z_H, self.answers.to(self.dtype))[:, len(self.prefix) :]
        # Computed at every segment, as published; HRM-Agent always runs all of them.
        F.linear(z_H[:, 0], self.halting.weight.to(self.dtype), self.halting.bias.to(self.dtype)).float()
        return logits[:, -1, :ACTIONS].float(), (z_H.detach(), z_L.detach())

    @torch.no_grad()
    def decide(self, ids: Tensor, kept: Latents, episode_start: Tensor) -> tuple[Tensor, Latents]:
        """Q-values `[B, 4]` after all segments, and what the last token keeps, each `[B, D]`."""
        latents = self.seed(kept, episode_start)
        q = torch.empty(0)
        for _ in range(self.segments):
            q, latents = self.segment(ids, latents)
        z_H, z_L = latents
        return q, (z_H[:, -1].float(), z_L[:, -1].float())


class PublishedTraining:
    """One optimizer step per segment: squared error of the chosen Q-values, AdamATan2, an average for the target."""

    def __init__(self, agent: PublishedAgent) -> None:
        self.agent = agent
        parameters = [p for p in agent.parameters() if p.requires_grad]
        self.optimizer = PublishedOptimizer(parameters, LEARNING_RATE, 0.0, BETAS, TARGET_AVERAGE)

    def segment(self, ids: Tensor, latents: Latents, actions: Tensor, targets: Tensor) -> Latents:
        """Run one segment, train on it, and return the latents that the next one starts from.

        Args:
            ids: integers `[B, cells]`.
            actions: int64 `[B]`.
            targets: float `[B]`, of the Q-values of these actions.
        """
        q, latents = self.agent.segment(ids, latents)
        loss = F.mse_loss(q.gather(1, actions[:, None]).squeeze(1), targets)
        self.optimizer.step(loss)
        return latents


class PublishedOptimizer:
    """AdamATan2, one loop over the parameters, and another for their average.

    Args:
        parameters: that are trained.
        learning_rate, weight_decay, betas: of AdamATan2.
        average: what the average keeps of itself in a step.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        average: float,
    ) -> None:
        self.parameters, self.learning_rate, self.weight_decay = parameters, learning_rate, weight_decay
        self.betas, self.average = betas, average
        self.means = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]
        self.averages = [p.detach().clone() for p in parameters]
        self.steps = 0

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of a loss."""
        for p in self.parameters:
            p.grad = None
        loss.backward()
        self._update()

    @torch.no_grad()
    def _update(self) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            mean.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = square.sqrt() / math.sqrt(1 - beta2**self.steps)
            if self.weight_decay:
                p.mul_(1 - self.learning_rate * self.weight_decay)
            p.sub_(torch.atan2(mean, root), alpha=self.learning_rate / (1 - beta1**self.steps))
        for average, p in zip(self.averages, self.parameters, strict=True):
            average.copy_(self.average * average + (1 - self.average) * p)
