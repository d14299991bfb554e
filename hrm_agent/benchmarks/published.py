"""The published recipe of HRM-Agent's network, written plainly: what its speed is measured against.

What the papers say (arXiv 2506.21734 for HRM, 2510.22832 for HRM-Agent) and the settings of their authors' code, in
words of our own: eager, the whole batch at once, torch's own threads, weights cast to the dtype of the matrix products
wherever they are used, norms and rotary positions in float32, one loop over the parameters for AdamATan2 and one for
the average. Heads and embeddings have the published sizes (131 glyphs, 541,186 parameters), though four Q-values are
read of them; the puzzle embedding is the one prefix token, which the authors train apart and we leave as it is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.hrm import HRM
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


class PublishedLayer(nn.Module):
    """Attention, then a SwiGLU, each normed after its residual; no biases.

    Args:
        heads: of the attention.
        weights: `qkv`, `out`, `gate_up`, `down`, each `[outputs, inputs]`, float32.
        dtype: that they are cast to where they are used.
    """

    def __init__(self, heads: int, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.dtype = heads, dtype
        self.qkv, self.out, self.gate_up, self.down = (
            nn.Parameter(weights[name].detach().clone()) for name in ("qkv", "out", "gate_up", "down")
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = normed(x + self._attend(x, cos, sin))
        gate, up = F.linear(x, self.gate_up.to(self.dtype)).chunk(2, dim=-1)
        return normed(x + F.linear(F.silu(gate) * up, self.down.to(self.dtype)))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, size = x.shape
        qkv = F.linear(x, self.qkv.to(self.dtype)).view(batch, length, 3 * self.heads, size // self.heads)
        query, key, value = qkv.split(self.heads, dim=2)
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, size), self.out.to(self.dtype))


class PublishedAgent(nn.Module):
    """HRM-Agent's network with the weights of a policy of ours.

    Args:
        policy: with an HRM core of attention, one prefix token, no crop or patches, and Q-values read from the last
            token (`+experiment=hrm_agent_maze`). The bias that its Q-values have, and the published ones have not, is
            left out.
        dtype: of activations and matrix products, float32 or (as published) bfloat16.

    Raises:
        TypeError: another encoder or core.
    """

    cos: Tensor
    sin: Tensor
    initial: Tensor
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
        self.segments, self.H_cycles, self.L_cycles = policy.segments, core.H_cycles, core.L_cycles
        self.H_net, self.L_net = (
            nn.ModuleList(PublishedLayer(*weights_of(layer), dtype) for layer in net.layers)
            for net in (core.H_net, core.L_net)
        )
        # Published embeddings have a deviation of 1/sqrt(D) and are scaled by sqrt(D); ours have that of the product.
        self.embedding = nn.Parameter(torch.randn(GLYPHS, size) / self.scale)
        self.embedding.data[: grid.num_ids] = grid.embedding.detach()[: grid.num_ids] / self.scale
        self.answers = nn.Parameter(torch.randn(GLYPHS, size) / self.scale)
        self.answers.data[:ACTIONS] = policy.policy_head.weight.detach()
        self.halting = nn.Linear(size, 2)
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, -5.0)
        self.register_buffer("prefix", encoder.prefix.detach().clone() / self.scale)
        self.register_buffer("initial", torch.stack([core.z_H_init, core.z_L_init]).clone())
        self.register_buffer("cos", core.rotary.cos)
        self.register_buffer("sin", core.rotary.sin)

    def seed(self, kept: Latents, episode_start: Tensor) -> Latents:
        """Latents before the first segment: what the last token kept, at every position; fresh in a new episode.

        Args:
            kept: each `[B, D]`.
            episode_start: bool `[B]`.
        """
        start, length = episode_start.view(-1, 1, 1), self.cos.shape[0]
        z_H, z_L = (
            torch.where(start, fresh, old.unsqueeze(1)).to(self.dtype).expand(-1, length, -1)
            for fresh, old in zip(self.initial, kept, strict=True)
        )
        return z_H, z_L

    def segment(self, ids: Tensor, latents: Latents) -> tuple[Tensor, Latents]:
        """One segment; only its last update of either latent has a gradient.

        Args:
            ids: integers `[B, cells]`.

        Returns:
            Q-values float32 `[B, 4]`, and the latents without a graph.
        """
        z_H, z_L = latents
        tokens = F.embedding(ids, self.embedding.to(self.dtype))
        x = self.scale * torch.cat([self.prefix.to(self.dtype).expand(len(ids), -1, -1), tokens], dim=1)
        with torch.no_grad():
            for H_cycle in range(self.H_cycles):
                for L_cycle in range(self.L_cycles):
                    if not (H_cycle == self.H_cycles - 1 and L_cycle == self.L_cycles - 1):
                        z_L = self._run(self.L_net, z_L + (z_H + x))
                if H_cycle != self.H_cycles - 1:
                    z_H = self._run(self.H_net, z_H + z_L)
        z_L = self._run(self.L_net, z_L + (z_H + x))
        z_H = self._run(self.H_net, z_H + z_L)
        logits = F.linear(z_H, self.answers.to(self.dtype))[:, len(self.prefix) :]
        # Asked for at every segment, as published; HRM-Agent always thinks for all of them.
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

    def _run(self, net: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in net:
            x = layer(x, self.cos, self.sin)
        return x


class PublishedTraining:
    """One optimizer step per segment: squared error of the chosen Q-values, AdamATan2, an average for the target."""

    def __init__(self, agent: PublishedAgent) -> None:
        self.agent = agent
        parameters = [p for p in agent.parameters() if p.requires_grad]
        self.optimizer = PublishedOptimizer(parameters, LEARNING_RATE, 0.0, BETAS, TARGET_AVERAGE)

    def segment(self, ids: Tensor, latents: Latents, actions: Tensor, targets: Tensor) -> Latents:
        """Think for one segment, learn from it, and return the latents that the next one starts from.

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


def weights_of(layer: nn.Module) -> tuple[int, dict[str, Tensor]]:
    """Heads and weights of one of our blocks."""
    names = {"qkv": "mixer.qkv", "out": "mixer.out", "gate_up": "mlp.gate_up", "down": "mlp.down"}
    weights: dict[str, Tensor] = {name: layer.get_parameter(f"{ours}.weight") for name, ours in names.items()}
    return int(layer.get_submodule("mixer").num_heads), weights  # type: ignore[arg-type]


def normed(x: Tensor) -> Tensor:
    """RMSNorm without a weight, in float32."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of `[B, L, heads, head_size]`, in float32."""
    wide = x.to(torch.float32)
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
