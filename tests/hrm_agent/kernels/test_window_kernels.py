"""A window of environment steps by the C++ kernels is the policy's own, step by step."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.cores.trm import TRM
from hrm_agent.evaluation.cost import measure_cost
from hrm_agent.kernels.cpu import window as window_kernel
from hrm_agent.kernels.cpu.memory import Pool
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import Full
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import cpu as windows
from hrm_agent.recurrence.cpu import network_of, network_supports, plan_of
from window_cases import SPACE, assert_near, make, results, window

pytestmark = pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")

KERNEL_RULES = ["full", "gate", "gate_state", "gate_scalar", "leak", "reset"]


@given(
    core=st.sampled_from(["trm", "hrm"]),
    mixing=st.sampled_from(["conv", "attention", "mlp"]),
    cycles=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    segments=st.integers(1, 2),
    steps=st.integers(1, 4),
    batch=st.integers(1, 20),
    prefix=st.integers(0, 2),
    carry=st.sampled_from(KERNEL_RULES),
    readout=st.sampled_from(["agent", "first", "last", "mean"]),
    time_gradient=st.sampled_from(["bptt", "detached"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_a_window_is_as_near_the_exact_one_as_torch_s(
    core: str, mixing: str, cycles: tuple[int, int], segments: int, steps: int, batch: int, seed: int, **options: Any
) -> None:
    torch.manual_seed(seed)
    policy = make(core, mixing=mixing, H_cycles=cycles[0], L_cycles=cycles[1], segments=segments, **options)
    assert_near(policy, window(policy, steps, batch, seed))


@given(
    core=st.sampled_from(["trm", "hrm"]),
    mixing=st.sampled_from(["conv", "attention", "mlp"]),
    carry=st.sampled_from(KERNEL_RULES),
    readout=st.sampled_from(["agent", "mean"]),
    time_gradient=st.sampled_from(["bptt", "detached"]),
    threshold=st.sampled_from([0.05, 0.15, 0.3, 0.6]),
    steps=st.integers(1, 3),
    batch=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20)
def test_every_row_thinks_until_it_settles(
    core: str, threshold: float, steps: int, batch: int, seed: int, **options: Any
) -> None:
    torch.manual_seed(seed)
    policy = make(core, segments=4, stop="latent_change", stop_threshold=threshold, L_cycles=2, H_cycles=1, **options)
    assert_near(policy, window(policy, steps, batch, seed))


@pytest.mark.skipif(not recurrence.available("fused_bf16"), reason="no AVX512_BF16")
@pytest.mark.parametrize("carry", ["full", "gate", "reset"])
@pytest.mark.parametrize("time_gradient", ["bptt", "detached"])
def test_bfloat16_gradients_point_where_the_exact_ones_do(carry: str, time_gradient: str) -> None:
    torch.manual_seed(3)
    policy = make("trm", mixing="conv", size=32, carry=carry, time_gradient=time_gradient, H_cycles=1, L_cycles=2)
    given = window(policy, 3, 12, 3)
    gradients = [results(policy, path, given)[1] for path in ("plain", "fused_bf16")]
    for exact, ours in zip(*gradients, strict=True):
        assert torch.cosine_similarity(exact.flatten(), ours.flatten(), dim=0) > 0.99 or not exact.any()


@pytest.mark.parametrize("core", ["trm", "hrm"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"carry": "gate"},
        {"carry": "gate_state"},
        {"carry": "gate_scalar"},
        {"carry": "leak"},
        {"carry": "reset", "readout": "mean"},
        {"carry": "gate", "segments": 4, "stop": "latent_change", "stop_threshold": 0.3},
    ],
)
def test_steps_and_rows_are_the_windows_own(core: str, options: dict[str, Any]) -> None:
    """What collection stores is what training recomputes: the state bit for bit, whatever the batch or the gradient."""
    torch.manual_seed(0)
    policy = make(core, mixing="conv", **options)
    recurrence.use(policy, "fused")
    obs, state, starts = window(policy, 5, 11, 0)
    trained = policy.unroll(obs, state, starts)
    with torch.no_grad():
        whole = policy.unroll(obs, state, starts)
        parts = [policy.unroll(obs[:, r], tuple(s[r] for s in state), starts[:, r]) for r in torch.arange(11).split(3)]
        for t in range(5):
            decision = policy.step(obs[t], state, starts[t])
            torch.testing.assert_close(decision.logits, whole.logits[t])
            torch.testing.assert_close(decision.value, whole.value[t])
            assert torch.equal(decision.segments, whole.segments[t])
            state = decision.state
    assert len(state) == len(whole.state)
    for i, kept in enumerate(whole.state):
        assert torch.equal(state[i], kept)
        assert torch.equal(trained.state[i], kept)
        assert torch.equal(torch.cat([part.state[i] for part in parts]), kept)
    for whole_of, parts_of in zip(whole[:2], zip(*[part[:2] for part in parts], strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts_of, dim=1), whole_of)


@pytest.mark.parametrize("carry", ["full", "gate"])
def test_what_came_before_an_episode_is_not_heard(carry: str) -> None:
    policy = make("trm", mixing="attention", carry=carry)
    recurrence.use(policy, "fused")
    obs, state, starts = window(policy, 2, 6, 1)
    starts[1] = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        one = policy.unroll(obs, state, starts)
        other = policy.unroll(obs, tuple(s + 1 for s in state), starts)
    assert torch.equal(one.logits[1][starts[1]], other.logits[1][starts[1]])
    assert not torch.equal(one.logits[1][~starts[1]], other.logits[1][~starts[1]])


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 1),
        ({"carry": "gate"}, 1),
        ({"carry": "gate_state"}, 1),
        ({"carry": "gate_scalar"}, 1),
        ({"carry": "leak"}, 1),
        ({"carry": "reset"}, 1),
        ({"readout": "mean"}, 1),
        ({"stop": "latent_change", "stop_threshold": 0.1, "segments": 3}, 1),
        ({"stop": "policy_kl", "segments": 3}, 1),
        # A call for every step, or for every segment where a row stops when the policy says so.
        ({"carry": "last_token"}, 3),
        ({"carry": "output", "segments": 2}, 3),
        ({"stop": "policy_kl", "stop_threshold": 1e-9, "segments": 3}, 9),
        # Cycles without a gradient: stack by stack.
        ({"cycle_gradient": "last", "H_cycles": 2, "time_gradient": "detached"}, 0),
    ],
)
def test_a_window_is_few_calls(options: dict[str, Any], calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, run_window = [0], windows.run_window

    def counting(*given: Any) -> Any:
        counted[0] += 1
        return run_window(*given)

    monkeypatch.setattr(windows, "run_window", counting)
    torch.manual_seed(2)
    policy = make("trm", mixing="conv", **options)
    obs, state, starts = window(policy, 3, 4, 2)
    if policy.config.carry in ("last_token", "output"):
        state = policy.initial_state(4)
    plain, plain_gradients = results(policy, "plain", (obs, state, starts))
    assert counted == [0]
    fused, fused_gradients = results(policy, "fused", (obs, state, starts))
    assert counted == [calls]
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-4, atol=1e-4)
    largest = max(float(g.abs().max()) for g in plain_gradients)
    for ours, theirs in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours.expand_as(theirs), theirs, rtol=1e-3, atol=1e-4 * largest)


def test_a_carry_rule_of_one_s_own_is_asked() -> None:
    """What the kernels know of a parent does not hold for a child with another rule."""

    class Halved(Full):
        def to_core_state(self, kept: Any, episode_start: Tensor, tokens: Tensor) -> Any:
            return super().to_core_state(tuple(k / 2 for k in kept), episode_start, tokens)

    policy = make("trm", mixing="conv")
    policy.carry = Halved(policy.core, 4)
    assert policy.carry.window_rule() is None
    given = window(policy, 3, 4, 2)
    plain, fused = (results(policy, path, given)[0] for path in ("plain", "fused"))
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused_or_goes_the_plain_way() -> None:
    """The kernels see memory, not shapes."""
    policy = make("trm", mixing="attention")
    obs, state, starts = window(policy, 1, 8, 4)
    recurrence.use(policy, "fused")
    with torch.no_grad():
        whole = policy.step(obs[0], state, starts[0])
        with pytest.raises(ValueError, match=r"z_H is torch.float32 \[4, 12, 16\] on cpu: expected"):
            policy.step(obs[0], tuple(s[:4] for s in state), starts[0])
        half = policy.step(obs[0], tuple(s.bfloat16() for s in state), starts[0])  # torch promotes it
        torch.testing.assert_close(half.logits, whole.logits, rtol=0.1, atol=0.2)
        counted = policy.step(obs[0], state, starts[0].long())
        assert torch.equal(counted.logits, whole.logits)
        one = policy.step(obs[0], state, torch.tensor([True]))
        everybody = policy.step(obs[0], state, torch.ones(8, dtype=torch.bool))
        assert torch.equal(one.logits, everybody.logits)
        stack = policy.core.net
        shorter = torch.randn(4, 9, 16)
        assert torch.equal(stack(shorter), stack.reference(shorter))


def test_a_step_alone_passes_the_gradient_to_its_state() -> None:
    policy = make("trm", mixing="conv", time_gradient="detached")
    obs, state, starts = window(policy, 1, 4, 5)
    found = []
    for path in ("plain", "fused"):
        recurrence.use(policy, path)
        given = tuple(s.clone().requires_grad_() for s in state)
        found.append(torch.autograd.grad(policy.step(obs[0], given, starts[0]).logits.sum(), given))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("carry", ["full", "reset"])
def test_a_decision_costs_the_same_multiply_adds(carry: str) -> None:
    """They are counted in eager torch, whatever computes the policy."""
    policy = make("trm", mixing="conv", carry=carry)
    counted = []
    for path in ("plain", "fused"):
        recurrence.use(policy, path)
        counted.append(measure_cost(policy, SPACE, batch=2)["macs_per_decision"])
    assert counted[0] == counted[1] > 10_000
    assert recurrence.path_of(policy) == "fused"


def test_a_gradient_is_taken_once() -> None:
    policy = make("trm", mixing="conv")
    recurrence.use(policy, "fused")
    loss = policy.unroll(*window(policy, 2, 3, 3)).logits.sum()
    torch.autograd.grad(loss, policy.policy_head.weight, retain_graph=True)
    weight = next(policy.core.parameters())
    torch.autograd.grad(loss, weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, weight)


def test_buffers_are_used_again_and_not_hoarded() -> None:
    pool = Pool(most=100)
    first = pool.take(40)
    pool.give(first)
    assert pool.take(10).numel() == 10  # a buffer four times too large stays where it is
    assert pool.take(30) is first
    for floats in (60, 50, 40):
        pool.give(torch.empty(floats))
    assert pool.take(60).numel() == 60
    assert sum(b.numel() for b in pool._buffers) == 90


# Threads that divide a batch inside one call


def divided(policy: Policy, given: tuple[Any, ...], threads: int) -> tuple[list[Tensor], list[Tensor]]:
    """Everything that a window decides, and the gradients of weights and state, by so many threads."""
    policy.divide(threads)
    decision, gradients = results(policy, "fused", given)
    return [*decision[:2], *decision.state], list(gradients)


@pytest.mark.parametrize("carry", ["full", "gate", "reset"])
@pytest.mark.parametrize("core", ["trm", "hrm"])
@pytest.mark.parametrize("batch", [1, 7, 50])
def test_threads_change_no_decision_and_gradients_by_rounding_alone(core: str, carry: str, batch: int) -> None:
    torch.manual_seed(4)
    policy = make(core, 32, mixing="conv", carry=carry)
    given = window(policy, 4, batch, 11)
    decided, gradients = divided(policy, given, 1)
    largest = max(float(g.abs().max()) for g in gradients)
    for threads in (2, 5):
        first = divided(policy, given, threads)
        assert all(torch.equal(a, b) for a, b in zip(first[0], decided, strict=True))
        for ours, one in zip(first[1], gradients, strict=True):
            torch.testing.assert_close(ours, one, rtol=1e-4, atol=1e-5 * largest)
        for _ in range(5):  # whichever thread is the faster
            again = divided(policy, given, threads)
            assert all(torch.equal(a, b) for a, b in zip([*again[0], *again[1]], [*first[0], *first[1]], strict=True))


def test_a_large_network_has_a_part_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    policy = make("trm", 32, mixing="attention")
    given = window(policy, 2, 40, 3)
    parts = divided(policy, given, 3)
    monkeypatch.setattr(window_kernel, "SMALL_WEIGHTS", 0)
    whole = divided(policy, given, 3)
    assert all(torch.equal(a, b) for a, b in zip(parts[0], whole[0], strict=True))
    for a, b in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_calls_at_once_and_forked_processes_compute_the_same() -> None:
    torch.manual_seed(6)
    policy = make("trm", 32, mixing="conv")
    given = window(policy, 3, 40, 2)
    decided, gradients = divided(policy, given, 3)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: policy.unroll(*given).logits.detach(), range(12)):
            assert torch.equal(found, decided[0])
    child = os.fork()
    if child == 0:  # the workers are not in it
        with torch.no_grad():
            os._exit(int(not torch.equal(policy.unroll(*given).logits, decided[0])))
    assert os.waitpid(child, 0)[1] == 0
    again = divided(policy, given, 3)
    assert all(torch.equal(a, b) for a, b in zip(again[1], gradients, strict=True))


def test_the_kernels_divide_what_they_compute_and_python_the_rest() -> None:
    threads = Threads(2)
    torch.set_num_threads(1)
    policy = make("trm", 32, mixing="conv")
    assert policy.slices(threads, 10) == [slice(0, 5), slice(5, 10)]
    recurrence.use(policy, "fused")
    assert (policy.slices(threads, 10), policy.backend.threads) == ([slice(0, 10)], 2)
    assert (policy.slices(threads, 10, divisible=False), policy.backend.threads) == ([slice(0, 5), slice(5, 10)], 1)
    many = 2 * policy.chunk_size + 1  # would keep too much at a time
    assert (len(policy.slices(threads, many)), policy.backend.threads) == (4, 1)


def test_weights_of_another_type_are_not_read_by_the_kernels() -> None:
    policy = make("trm", 16, mixing="conv")
    recurrence.use(policy, "fused")
    policy.core.double()
    obs, state, _ = window(policy, 1, 3, 1)
    tokens = policy.encoder(obs[0])
    assert plan_of(policy.core).supports(tokens, state) is False
    assert not network_supports(network_of(policy.core.net), tokens)


def test_a_core_of_ones_own_does_not_inherit_the_kernels_of_its_parent() -> None:
    class Doubled(TRM):
        def forward(self, x: Tensor, state: Any) -> Any:
            y, after = super().forward(x, state)
            return 2 * y, after

    class Named(TRM):
        name = "the same computation"

    options = {"layers": 1, "num_heads": 1, "H_cycles": 1, "mixing": "conv", "inner_size": 16}
    assert plan_of(Doubled(16, 6, (2, 3), **options)) is None
    assert plan_of(Named(16, 6, (2, 3), **options)) is not None
