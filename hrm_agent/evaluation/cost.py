"""The cost of a decision: multiply-adds and milliseconds. Operations and memory traffic of any call of torch's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hrm_agent.policies.encoders import Observation
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import reference_kernels

TIMED_CALLS = 40
WARM_UP_CALLS = 5

Decide = Callable[[int], Callable[[], object]]
"""From a number of observations to a call that decides on all of them at once, in mid-episode."""


def decision_cost(decide: Decide, macs: int, batch: int) -> dict[str, Any]:
    """The cost of one decision, for a report.

    Args:
        decide: see `Decide`.
        macs: multiply-adds of one decision.
        batch: for `ms_per_decision_batched`.

    Returns:
        `macs_per_decision`; `ms_per_decision`, the median over `TIMED_CALLS` calls with one observation;
        `ms_per_decision_batched`, the median with `batch` observations, divided by them; `batch`.
    """
    return {
        "macs_per_decision": macs,
        "ms_per_decision": _median_ms(decide(1)),
        "ms_per_decision_batched": _median_ms(decide(batch)) / batch,
        "batch": batch,
    }


def _median_ms(call: Callable[[], object]) -> float:
    """Median duration of `TIMED_CALLS` calls in milliseconds, after `WARM_UP_CALLS` that do not count."""
    for _ in range(WARM_UP_CALLS):
        call()
    times = []
    for _ in range(TIMED_CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def measure_cost(
    policy: Policy, observation_space: gym.Space, batch: int = 256, segments_used: float | None = None
) -> dict[str, Any]:
    """The cost of one decision of a policy.

    Args:
        policy: with its number of segments, or the rule by which it stops.
        observation_space: of a single environment; the policy decides on a sample of it.
        batch: for `ms_per_decision_batched`.
        segments_used: mean segments per decision where their number varies; None: all that it may use.

    Returns:
        See `decision_cost`. `macs_per_decision` is for `segments_used` segments; it counts matrix products and
        convolutions, not look-ups, elementwise work and the test for stopping. Times are those of the sample, for
        which a policy that stops early may need more or fewer segments than on the levels.
    """

    def decide(rows: int) -> Callable[[], object]:
        return _decision(policy, observation_space, rows)

    return decision_cost(decide, _policy_macs(policy, observation_space, segments_used), batch)


def _policy_macs(policy: Policy, space: gym.Space, segments_used: float | None) -> int:
    """Multiply-adds of one decision; those of a fractional number of segments lie on the line through 1 and 2."""
    config = policy.config
    if config.stop == "fixed" and config.first_segments is None:
        return count_macs(policy, _decision(policy, space, 1))
    used = config.segments if segments_used is None else segments_used
    actions = gym.spaces.Discrete(policy.policy_head.out_features)
    with torch.random.fork_rng(devices=[]):  # building a policy draws its weights, which do not matter here
        fixed = [Policy(replace(config, segments=k, first_segments=None, stop="fixed"), space, actions) for k in (1, 2)]
    first, both = (count_macs(copy, _decision(copy, space, 1)) for copy in fixed)
    return round(first + (used - 1) * (both - first))


def _decision(policy: Policy, space: gym.Space, rows: int) -> Callable[[], None]:
    """A call that decides, in mid-episode, on `rows` copies of an observation."""
    device = next(policy.parameters()).device
    space.seed(0)
    sample = space.sample()
    sample = sample if isinstance(sample, dict) else {"": sample}
    copies = {key: torch.as_tensor(value, device=device)[None] for key, value in sample.items()}
    tensors = {key: value.expand(rows, *value.shape[1:]).contiguous() for key, value in copies.items()}
    obs: Observation = tensors[""] if list(tensors) == [""] else tensors
    state, start = policy.initial_state(rows), torch.zeros(rows, dtype=torch.bool, device=device)

    def decide() -> None:
        with torch.no_grad():
            policy.step(obs, state, start).logits.cpu()  # to the CPU: waits until the device is done

    return decide


def count_macs(module: nn.Module, call: Callable[[], object]) -> int:
    """Multiply-adds of a call that runs a module, computed by torch's own operations."""
    with reference_kernels(module):
        return count_operations(call) // 2


class Counted(NamedTuple):
    """Attributes:
    operations: of matrix products and convolutions, two for a multiply-add; elementwise work is not counted.
    bytes: that every operation reads and writes, as if none stayed in a register or a cache from one to the next.
    """

    operations: int
    bytes: int


def count(call: Callable[[], Any]) -> Counted:
    """What a call does in this thread, its backward included. Kernels that are not torch's are not counted."""
    # Only attention's plain form is made of products that the registry knows on every device.
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return Counted(counter.operations, counter.bytes)


def count_operations(call: Callable[[], Any]) -> int:
    """The operations of `count` alone."""
    return count(call).operations


class _Counter(TorchDispatchMode):
    """Not torch's FlopCounterMode, whose hooks refuse `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = flop_registry.get(func.overloadpacket)
        if operation is None:
            with self:  # in inference mode, calls made of others arrive whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if func is torch.ops.aten.convolution_backward.default:
            self.operations += _convolution_backward(*args, **kwargs)
        elif operation is not None:
            self.operations += int(operation(*args, **kwargs, out_val=out))
        if not func.is_view:
            self.bytes += _size(tree_leaves((args, kwargs))) + _size(tree_leaves(out))
        return out


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *others: Any) -> int:
    """As many as forward for each of the gradients wanted, of input and weight.

    torch's own count takes a depthwise convolution's weight for a dense one.
    """
    transposed, wanted = others[4], others[-1]
    assert not transposed
    return 2 * gradient.numel() * weight[0].numel() * sum(map(bool, wanted[:2]))


def _size(leaves: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
