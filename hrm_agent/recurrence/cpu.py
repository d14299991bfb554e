"""The C++ kernels as a backend: stacks of blocks, segments, whole windows, and grids of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm_agent.cores import Core, GRUCore, State, map_state
from hrm_agent.cores.blocks import AttentionMixing, BlockConfig, BlockStack, ConvMixing, PositionMLPMixing
from hrm_agent.cores.norm import NORM_EPS
from hrm_agent.cores.two_latents import TwoLatentCore
from hrm_agent.kernels.cpu.gru import pool_tokens, run_gru
from hrm_agent.kernels.cpu.patches import Patches, embed, find
from hrm_agent.kernels.cpu.stack import Shape, has_bfloat16, run_stack
from hrm_agent.kernels.cpu.window import FULL, Network, Rule, Schedule, Segment, WindowOutput, run_window
from hrm_agent.recurrence.backends import Backend
from hrm_agent.recurrence.unroll import Rules, Steps, Unrolled


class CPUKernels(Backend):
    """The C++ kernels; whatever they do not support (another device or dtype, tracing, a shape) is left to eager torch.

    Args:
        path: `fused`, in float32, or `fused_bf16`, with the forward's matrix products in bfloat16.
    """

    @property
    def bf16(self) -> bool:
        return self.path == "fused_bf16" or (torch.is_autocast_enabled("cpu") and has_bfloat16())

    def stack(self, stack: BlockStack, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        network = network_of(stack)
        if not network_supports(network, x):
            return stack.reference(x, angles)
        return run_stack(network.shape, x, angles, network.weights, self.bf16)

    def run_segments(self, core: Core, tokens: Tensor, latent: State, segments: int) -> tuple[Tensor, State]:
        plan = plan_of(core, self.bf16)
        if plan is None or not plan.supports(tokens, latent):
            return super().run_segments(core, tokens, latent, segments)
        output, after = plan.run_segments(tokens, latent, segments)
        return output, map_state(lambda _, new: new, latent, after)

    def unroll(self, core: Core, carry: Any, steps: Steps, rules: Rules) -> Unrolled | None:
        found = self._window(core, carry, rules)
        tokens, index = steps.tokens, steps.read
        if found is None or not found[1].supports(tokens) or not found[0].supports(tokens, steps.state):
            return None
        if index is None and rules.readout != "mean":
            index = torch.full(tokens.shape[:2], 0 if rules.readout == "first" else -1)
        schedule = Schedule(
            rules.segments, rules.threshold if rules.stop == "latent_change" else 0.0, rules.detach, self.threads
        )
        starts = steps.episode_start.to(torch.bool).expand(tokens.shape[:2])
        plan, rule = found
        return Unrolled(*plan.run(rule, schedule, Steps(tokens, steps.state, starts, index)))

    def divides(self, core: Core, carry: Any, rules: Rules) -> bool:
        found = self._window(core, carry, rules)
        return found is not None and found[0].divides

    def _window(self, core: Core, carry: Any, rules: Rules) -> tuple[Plan, Rule] | None:
        """How the kernels run a whole window; None where they do not support these settings."""
        kind, plan = carry.window_rule(), plan_of(core, self.bf16)
        if kind is None or plan is None:
            return None
        if rules.stops_early and not (rules.stop == "latent_change" and plan.stops_early):
            return None
        return plan, Rule(*kind)

    def embed_grid(self, encoder: Any, ids: Tensor) -> Tensor | None:
        patches = patches_of(encoder)
        if patches is None or not patches.supports(ids, encoder.embedding):
            return None
        lead = ids.shape[: ids.dim() - len(encoder.shape)]
        tokens = embed(patches, ids.reshape(-1, *encoder.shape[:2]), encoder.embedding, self.threads)
        return tokens.view(*lead, encoder.length, encoder.embedding.shape[1])

    def find_cell(self, encoder: Any, ids: Tensor, cell_id: int) -> Tensor | None:
        patches = patches_of(encoder)
        if patches is None or not patches.supports(ids, encoder.embedding):
            return None
        lead = ids.shape[: ids.dim() - len(encoder.shape)]
        return find(patches, ids.reshape(-1, *encoder.shape[:2]), cell_id).view(lead)


class Plan(Protocol):
    """Runs a kind of core over several environment steps."""

    @property
    def stops_early(self) -> bool:
        """Whether `stop=latent_change` is supported."""

    @property
    def divides(self) -> bool:
        """Whether the kernels divide a batch over threads, without and with gradient."""

    def supports(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        """Whether the kernels support this window, the required gradient and such a state."""

    def run_segments(self, tokens: Tensor, state: State, segments: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The core's output `[B, L, D]` and its state after some segments on tokens `[B, L, D]`."""

    def run(self, rule: Rule, schedule: Schedule, steps: Steps) -> WindowOutput:
        """See `hrm_agent.kernels.cpu.window.run_window`."""


@dataclass(frozen=True)
class TwoLatentPlan:
    """HRM and TRM, for one call: the weights are looked up once."""

    core: TwoLatentCore
    bf16: bool
    stops_early = True

    @cached_property
    def _low(self) -> Network:
        return network_of(self.core.low)

    @cached_property
    def _high(self) -> Network:
        return self._low if self.core.high is self.core.low else network_of(self.core.high)

    @property
    def _whole(self) -> bool:
        """HRM and TRM; every update must have a gradient."""
        return self.core.trained_updates == self.core.updates

    @property
    def divides(self) -> bool:
        return self._whole and shape_of(self.core.low).fits and shape_of(self.core.high).fits

    def supports(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        core = self.core
        latents = (*state, core.z_H_init, core.z_L_init)
        low, high = self._low, self._high
        networks = network_supports(low, x) and (high is low or network_supports(high, x))
        return networks and all(z.dtype == x.dtype for z in latents) and (self._whole or not torch.is_grad_enabled())

    def _segment(self) -> Segment:
        core = self.core
        fresh = (core.z_H_init, core.z_L_init)
        return Segment(self._low, self._high, core.H_cycles, core.L_cycles, core.rotary(), fresh, self.bf16)

    def run_segments(self, tokens: Tensor, state: State, segments: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        no_start = torch.zeros(1, len(tokens), dtype=torch.bool)
        anywhere = torch.zeros(1, len(tokens), dtype=torch.int64)
        after = run_window(self._segment(), FULL, Schedule(segments), tokens[None], state, no_start, anywhere).state
        return after[0], after

    def run(self, rule: Rule, schedule: Schedule, steps: Steps) -> WindowOutput:
        return run_window(self._segment(), rule, schedule, *steps[:4])


@dataclass(frozen=True)
class GRUPlan:
    """The GRU: the inputs of all steps in one product, the output only at the token that is read."""

    core: GRUCore
    stops_early = False
    divides = False

    def supports(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        core = self.core
        numbers = (x, *state, core.h_init, *core.cell.parameters())
        ready = all(t.dtype == torch.float32 and t.is_cpu for t in numbers)
        # The kernels take the gates' products, which torch computes from weights of any layout.
        return ready and not (torch.is_autocast_enabled("cpu") or is_traced())

    def run_segments(self, tokens: Tensor, state: State, segments: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        no_start = torch.zeros(1, len(tokens), dtype=torch.bool)
        h = self._memories(pool_tokens(tokens[None], None)[0], state[0], no_start, Schedule(segments))[0]
        return self.core.answer(tokens, h[:, None]), (h,)

    def run(self, rule: Rule, schedule: Schedule, steps: Steps) -> WindowOutput:
        """For the carry rules `full` and `reset`, and a fixed number of segments."""
        tokens, state, episode_start, read, _ = steps
        carries = rule.kind == "full"
        before = state[0] if carries else self.core.initial_state(tokens.shape[1]).h
        starts = episode_start if carries else torch.ones_like(episode_start)
        pooled, token = pool_tokens(tokens, None if read is None else read % tokens.shape[2])
        memories = self._memories(pooled, before, starts, schedule)  # [k, B, M]
        if token is None:
            reads = self.core.answer(tokens, memories[:, :, None]).mean(2)
        else:
            reads = self.core.answer(token, memories)
        after = (memories[-1],) if carries else ()
        return WindowOutput(reads, after, torch.full(tokens.shape[:2], schedule.segments))

    def _memories(self, pooled: Tensor, before: Tensor, starts: Tensor, schedule: Schedule) -> Tensor:
        cell = self.core.cell
        inputs = F.linear(pooled, cell.weight_ih, cell.bias_ih)
        return run_gru(
            inputs, before, starts, self.core.h_init, cell.weight_hh, cell.bias_hh,
            segments=schedule.segments, detach=schedule.detach,
        )  # fmt: skip


def plan_of(core: Core, bf16: bool = False) -> Plan | None:
    """How the kernels run a core; None where they do not support it, for example with a `forward` of its own."""
    if _defines(core, "forward") is _defines(core, "initial_state"):
        if isinstance(core, TwoLatentCore) and _defines(core, "forward") is TwoLatentCore:
            return TwoLatentPlan(core, bf16)
        if isinstance(core, GRUCore) and _defines(core, "forward") is GRUCore and core.flat is None:
            return GRUPlan(core)
    return None


@cache
def _definer(kind: type, name: str) -> type:
    return next(base for base in kind.__mro__ if name in vars(base))


def _defines(core: Core, name: str) -> type:
    """The class that defines a core's method."""
    kind: Any = type(core)
    return _definer(kind, name)


def is_traced() -> bool:
    """Whether torch is compiling, exporting or tracing, which does not work through the kernels."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())


def network_of(stack: BlockStack) -> Network:
    """A stack of blocks as the kernels take it."""
    return Network(shape_of(stack), weights_of(stack))


def network_supports(network: Network, x: Tensor) -> bool:
    """Whether the kernels support such a network with such an input."""
    shape = network.shape
    if not shape.fits or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if x.shape[-2:] != (shape.length, shape.size) or is_traced():
        return False
    return all(w.dtype == torch.float32 and w.is_contiguous() and w.is_cpu for w in network.weights)


def shape_of(stack: BlockStack) -> Shape:
    """The shape of a stack for the kernels; `Shape.fits` says whether they support it."""
    first: Any = next(iter(stack.layers))
    positions = first.mixer.swiglu.down.in_features if isinstance(first.mixer, PositionMLPMixing) else 0
    return _shape(
        stack.config, len(stack.layers), stack.length, stack.hidden_size, first.mlp.down.in_features,
        stack.grid or (0, 0), positions,
    )  # fmt: skip


@cache
def _shape(
    config: BlockConfig, layers: int, length: int, size: int, inner: int, grid: tuple[int, int], position_inner: int
) -> Shape:
    own = (grid, config.num_heads, position_inner, config.causal)
    return Shape(config.mixing, layers, length, size, inner, NORM_EPS, *own)


def weights_of(stack: BlockStack) -> list[Tensor]:
    """Weights in the order of `hrm_agent.kernels.cpu.stack.run_stack`."""
    return [weight for layer in stack.layers for weight in _weights_of_block(layer)]


def _weights_of_block(block: Any) -> list[Tensor]:
    mixer = block.mixer
    if isinstance(mixer, ConvMixing):
        own = (None if mixer.conv is None else mixer.conv.weight, mixer.pooled)
        mixing: list[Tensor] = [weight for weight in own if weight is not None]
    elif isinstance(mixer, AttentionMixing):
        mixing = [mixer.qkv.weight, mixer.out.weight]
    elif isinstance(mixer, PositionMLPMixing):
        mixing = [mixer.swiglu.gate_up.weight, mixer.swiglu.down.weight]
    else:
        return []  # not supported by the kernels
    return [*mixing, block.mlp.gate_up.weight, block.mlp.down.weight]


def patches_of(encoder: Any) -> Patches | None:
    """The patches of an encoder's grid (`hrm_agent.policies.encoders.GridEncoder`); None with several channels."""
    if encoder.channels != 1:
        return None
    return _patches(
        *encoder.shape[:2], encoder.crop, encoder.patch_size, *encoder.grid, encoder.num_ids, encoder.embedding.shape[1]
    )


_patches = cache(Patches)
