"""The growth study: its arithmetic is what torch counts, its exponents are slopes."""

from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.growth import cost, draw
from hrm_agent.cores.sweep import SCAN_PRODUCTS

SIDE = 13


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["attention", "mlp", "mlp_published", "conv", "sweep"])
def test_multiply_adds_by_arithmetic_are_those_that_torch_counts(name: str) -> None:
    policy, tokens = cost.build(name, SIDE), cost.tokens_of(SIDE)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        cost.decision(policy, SIDE)()
    counted = counter.get_total_flops() // 2
    if name == "sweep":  # compiled: torch does not see it; tests/hrm_agent/cores/test_sweep.py counts it
        counted += cost.PASSES * cost.LAYERS * tokens * SCAN_PRODUCTS * cost.WIDTH
    assert counted == cost.macs_of_decision(name, tokens)
    over_positions = sum(p.numel() for n, p in policy.named_parameters() if "swiglu" in n)
    assert cost.LAYERS * cost.weights_of_mixing(name, tokens) == over_positions


def test_kept_memory_of_a_training_call_grows_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = cost.build("conv", SIDE)
    once = cost.kept_bytes(policy, SIDE)
    latents = 4 * cost.tokens_of(SIDE) * cost.WIDTH * cost.ROWS * cost.STEPS
    assert once > cost.PASSES * cost.LAYERS * latents
    monkeypatch.setattr(cost, "ROWS", 2 * cost.ROWS)
    assert cost.kept_bytes(policy, SIDE) == pytest.approx(2 * once, rel=0.01)


@pytest.mark.thorough
def test_a_line_ends_where_a_call_is_too_slow_or_weights_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(cost, "WEIGHT_LIMIT", 8 * cost.weights_of_mixing("mlp", cost.tokens_of(9)))
    ended: dict[str, str] = {}
    assert {r["mixing"] for r in cost.measure_side(9, ended)} == {"attention", "mlp", "conv", "sweep"}
    assert list(ended) == ["mlp_published"]
    assert ended["mlp_published"].startswith("weights: ")
    monkeypatch.setattr(cost, "CALL_LIMIT", 0.0)
    assert cost.measure_side(9, ended) == []
    assert ended["conv"].startswith("time: ")
    assert cost.measure_side(13, ended) == []


def test_exponents_are_slopes_over_the_large_sizes() -> None:
    line = [{"side": s, "tokens": t, "ms": 3 * t**1.5} for s, t in ((9, 1), (33, 256), (65, 1024), (101, 2500))]
    assert draw.exponent(line, "ms") == pytest.approx(1.5)
    assert draw.exponent(line[:3], "ms") is None
