"""K segments of a core at each of k environment steps: the reference, in eager torch.

Backends (`hrm_agent.recurrence.backends`) compute the same function faster, and fall back to it for what they do not
support.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hrm_agent.cores import Core, State, map_state

if TYPE_CHECKING:
    from hrm_agent.recurrence.backends import Backend

STOPS = ("fixed", "latent_change", "policy_kl")


@dataclass(frozen=True)
class Rules:
    """The rules of an environment step.

    Args:
        segments: K per step; a maximum where `stop` is not `fixed`.
        first_segments: K where an episode starts; None: `segments`.
        stop: of `STOPS`, decided for every row by itself: `fixed` after K segments; `latent_change` once a segment
            changed the latent by less than `threshold`, relative to its norm; `policy_kl` once the policies after two
            successive segments differ by less than it (KL divergence in nats).
        threshold: see `stop`; with 0 all K segments are run.
        detach: no gradient flows through the state from a step to the one before.
        readout: `mean` of all tokens, `first` or `last`; ignored where `Steps.read` gives indices.
        params: from the readout, `[..., D]`, and `Steps.legal` to the parameters of the policy's distribution; for
            `policy_kl`.
        divergence: between distributions with such parameters; for `policy_kl`.
        output: from the readout and `Steps.legal` to the input of a carry rule with `from_output`.
    """

    segments: int
    stop: str = "fixed"
    threshold: float = 0.0
    detach: bool = False
    readout: str = "last"
    params: Callable[[Tensor, Tensor | None], Tensor] | None = None
    divergence: Callable[[Tensor, Tensor], Tensor] | None = None
    output: Callable[[Tensor, Tensor | None], Tensor] | None = None
    first_segments: int | None = None

    @property
    def stops_early(self) -> bool:
        return self.stop != "fixed" and self.threshold > 0


class Steps(NamedTuple):
    """k environment steps of B environments.

    Attributes:
        tokens: float `[k, B, L, D]` of the observations.
        state: the carried state before the first step.
        episode_start: bool `[k, B]`; where true, the core starts from its initial state.
        read: int64 `[k, B]`, index of the token to read after each step, negative from the end. None: see
            `Rules.readout`.
        legal: bool `[k, B, P]`, the actions that may be taken at each step; None: all.
    """

    tokens: Tensor
    state: tuple[Tensor, ...]
    episode_start: Tensor
    read: Tensor | None = None
    legal: Tensor | None = None


class Unrolled(NamedTuple):
    """Results of a window: readout after each step, float `[k, B, D]`; carried state after the last; segments used by
    each row, int64 `[k, B]`."""

    reads: Tensor
    state: tuple[Tensor, ...]
    segments: Tensor


def unroll(core: Core, carry: Any, steps: Steps, rules: Rules, backend: Backend | None = None) -> Unrolled:
    """Run k consecutive environment steps; a policy's core is called here and in `run_segments` only.

    Args:
        carry: the carry rule (`hrm_agent.policies.carry.Carry`).
        backend: see `hrm_agent.recurrence.backends`; None: eager torch.
    """
    if rules.first_segments is not None:
        return _unroll_by_starts(core, carry, steps, rules, backend)
    if backend is not None:
        done = backend.unroll(core, carry, steps, rules)
        if done is not None:
            return done
    tokens, state, episode_start, index, allowed = steps
    reads, segments = [], []
    # unbind, not tokens[t]: its backward stacks the steps' gradients once, instead of adding k zero-padded ones.
    for t, step_tokens in enumerate(tokens.unbind(0)):
        if rules.detach:
            state = tuple(s.detach() for s in state)
        at = None if index is None else index[t]
        legal = None if allowed is None else allowed[t]
        latent = carry.to_core_state(state, episode_start[t], step_tokens)
        if rules.stop == "fixed":
            output, latent = run_segments(core, step_tokens, latent, rules.segments, backend)
            used = torch.full(step_tokens.shape[:1], rules.segments, device=tokens.device)
        else:
            output, latent, used = _run_until_done(core, step_tokens, latent, at, legal, rules, backend)
        read = read_token(output, rules.readout, at)
        state = to_carried(carry, latent, read, rules, legal)
        reads.append(read)
        segments.append(used)
    return Unrolled(torch.stack(reads), state, torch.stack(segments))


def _unroll_by_starts(core: Core, carry: Any, steps: Steps, rules: Rules, backend: Backend | None) -> Unrolled:
    """`unroll` where rows that start an episode run another number of segments: step by step, in two parts."""
    assert rules.first_segments is not None
    budgets = ((True, rules.first_segments), (False, rules.segments))
    state, reads, segments = steps.state, [], []
    for t, starts in enumerate(steps.episode_start.to(torch.bool)):
        chosen, parts = [], []
        for starting, budget in budgets:
            rows = (starts == starting).nonzero().squeeze(1)
            if len(rows):
                one = slice(t, t + 1)
                read, legal = (None if given is None else given[one, rows] for given in (steps.read, steps.legal))
                part = Steps(steps.tokens[one, rows], tuple(s[rows] for s in state), starts[None, rows], read, legal)
                alike = replace(rules, segments=budget, first_segments=None)
                chosen.append(rows)
                parts.append(unroll(core, carry, part, alike, backend))
        order = torch.cat(chosen).argsort()  # from the parts' rows, one after the other, back to the batch's
        state = tuple(torch.cat(fields)[order] for fields in zip(*(part.state for part in parts), strict=True))
        reads.append(torch.cat([part.reads[0] for part in parts])[order])
        segments.append(torch.cat([part.segments[0] for part in parts])[order])
    return Unrolled(torch.stack(reads), state, torch.stack(segments))


def run_segments(
    core: Core, tokens: Tensor, latent: State, segments: int, backend: Backend | None = None
) -> tuple[Tensor, State]:
    """The core's output `[B, L, D]` and its state after `segments` segments on the same tokens `[B, L, D]`."""
    if backend is not None:
        return backend.run_segments(core, tokens, latent, segments)
    output = tokens
    for _ in range(segments):
        output, latent = core(tokens, latent)
    return output, latent


def to_carried(
    carry: Any, latent: State, read: Tensor, rules: Rules, legal: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The carried state for the next step, from the core's last state and the readout `[B, D]`.

    Args:
        legal: bool `[B, P]`, the actions that may be taken; None: all.
    """
    output = rules.output(read, legal) if carry.from_output and rules.output is not None else None
    carried: tuple[Tensor, ...] = carry.from_core_state(latent, output)
    return carried


def _run_until_done(
    core: Core,
    tokens: Tensor,
    latent: State,
    index: Tensor | None,
    legal: Tensor | None,
    rules: Rules,
    backend: Backend | None,
) -> tuple[Tensor, State, Tensor]:
    """At most K segments, with each row stopping by itself: output, state and segments `[B]`."""
    size = tokens.shape[0]
    segments = torch.zeros(size, dtype=torch.int64, device=tokens.device)
    active = torch.arange(size, device=tokens.device)
    output, policies = tokens, None
    for _ in range(rules.segments):
        all_active = active.numel() == size
        before = latent if all_active else map_state(lambda t: t[active], latent)  # noqa: B023
        at, allowed = (given if all_active or given is None else given[active] for given in (index, legal))
        new_output, after = run_segments(core, tokens if all_active else tokens[active], before, 1, backend)
        if all_active:
            output, latent = new_output, after
        else:
            output = output.index_copy(0, active, new_output)
            latent = map_state(lambda t, new: t.index_copy(0, active, new), latent, after)  # noqa: B023
        segments[active] += 1
        with torch.no_grad():
            now = _policies(new_output, at, allowed, rules)
            done = may_stop(before, after, policies, now, rules)
        active = active[~done]
        policies = None if now is None else now[~done]
        if not active.numel():
            break
    return output, latent, segments


def _policies(output: Tensor, index: Tensor | None, legal: Tensor | None, rules: Rules) -> Tensor | None:
    """Parameters `[M, P]` after a segment, where the rule compares them."""
    if rules.stop == "latent_change":
        return None
    assert rules.params is not None
    return rules.params(read_token(output, rules.readout, index), legal)


def may_stop(before: State, after: State, policies: Tensor | None, now: Tensor | None, rules: Rules) -> Tensor:
    """Which rows stop after a segment, bool `[M]`, by a rule that is not `fixed`.

    Args:
        before, after: the core's state.
        policies, now: parameters `[M, P]` after the segment before, None at the first, and after this one; for
            `policy_kl`.
    """
    if rules.stop == "latent_change":
        return relative_change(before, after) < rules.threshold
    assert now is not None
    assert rules.divergence is not None
    if policies is None:
        return torch.zeros(now.shape[0], dtype=torch.bool, device=now.device)
    # A divergence is never below 0, so a threshold of 0 never stops a row.
    return rules.divergence(now, policies) < rules.threshold


def read_token(output: Tensor, readout: str, index: Tensor | None = None) -> Tensor:
    """The heads' input from a core's output tokens `[B, L, D]`: float `[B, D]`.

    Args:
        readout: `mean`, `first` or `last`; ignored where there is an `index`.
        index: int64 `[B]`, each row's token, negative from the end.
    """
    if index is not None:
        # Not take_along_dim, with which torch.export fixes the batch size.
        at = (index % output.shape[1]).view(-1, 1, 1).expand(-1, 1, output.shape[2])
        return output.gather(1, at).squeeze(1)
    if readout == "mean":
        return output.mean(1)
    return output[:, 0] if readout == "first" else output[:, -1]


def relative_change(before: State, after: State) -> Tensor:
    """`||after - before|| / ||after||` of each row's whole latent, float `[B]`; the state must have tensors."""
    moved = torch.stack([(a - b).flatten(1).square().sum(1) for a, b in zip(after, before, strict=True)]).sum(0)
    norm = torch.stack([a.flatten(1).square().sum(1) for a in after]).sum(0)
    return (moved / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt()
