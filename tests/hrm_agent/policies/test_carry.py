"""Carry rules: shapes of what is kept, fresh where an episode starts, and which cores they suit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hrm_agent.cores import Core, build_core
from hrm_agent.policies.carry import CARRY_RULES, Gate, build_carry, resolve_carry
from tiny import CORES

BATCH, LENGTH, SIZE, ACTIONS = 3, 9, 8, 4


def core_of(name: str) -> Core:
    torch.manual_seed(0)
    return build_core(name, hidden_size=SIZE, length=LENGTH, grid=(3, 3), **CORES[name])


def tokens_of(seed: int = 1) -> Tensor:
    return torch.randn(BATCH, LENGTH, SIZE, generator=torch.Generator().manual_seed(seed))


def nowhere() -> Tensor:
    return torch.zeros(BATCH, dtype=torch.bool)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("rule", ["reset", "full"])
def test_what_is_kept_has_the_shapes_of_the_initial_and_the_batch_first(core: str, rule: str) -> None:
    made = core_of(core)
    carry = build_carry(rule, made, ACTIONS)
    initial = carry.initial(BATCH)
    _, state = made(tokens_of(), carry.to_core_state(initial, nowhere(), tokens_of()))
    kept = carry.from_core_state(state, None)
    assert [t.shape for t in kept] == [t.shape for t in initial]
    assert all(t.shape[0] == BATCH for t in kept)
    if rule == "full":
        assert [t.shape for t in kept] == [t.shape for t in made.initial_state(BATCH)]


def test_last_token_keeps_one_vector_for_each_latent_and_gives_it_to_every_position() -> None:
    core = core_of("trm")
    carry = build_carry("last_token", core, ACTIONS)
    state = type(core.initial_state(1))(*(torch.randn(BATCH, LENGTH, SIZE) for _ in range(2)))
    kept = carry.from_core_state(state, None)
    assert [tuple(t.shape) for t in kept] == [(BATCH, SIZE)] * 2
    seeded = carry.to_core_state(kept, torch.tensor([False, True, False]), tokens_of())
    fresh = core.initial_state(BATCH)
    for field, before, new in zip(seeded, state, fresh, strict=True):
        for position in range(LENGTH):
            assert torch.equal(field[0, position], before[0, -1])
            assert torch.equal(field[1, position], new[1, position])


@pytest.mark.parametrize("rule", CARRY_RULES)
def test_a_start_gives_the_cores_initial_state_to_that_row_alone(rule: str) -> None:
    core = core_of("hrm")
    carry = build_carry(rule, core, ACTIONS)
    kept = tuple(t + torch.randn_like(t) for t in carry.initial(BATCH))
    seeded = carry.to_core_state(kept, torch.tensor([True, False, True]), tokens_of())
    for field, new in zip(seeded, core.initial_state(BATCH), strict=True):
        fresh = [torch.equal(field[row], new[row]) for row in range(BATCH)]
        assert fresh == [True, rule == "reset", True]


@pytest.mark.parametrize("rule", CARRY_RULES)
def test_seeding_changes_nothing_that_was_kept(rule: str) -> None:
    carry = build_carry(rule, core_of("trm"), ACTIONS)
    kept = carry.initial(BATCH)
    before = tuple(Tensor.clone(t) for t in kept)
    state = carry.to_core_state(kept, torch.tensor([True, False, False]), tokens_of())
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert type(state) is type(carry.core.initial_state(1))


def test_an_open_gate_carries_everything_and_a_closed_one_nothing() -> None:
    core = core_of("trm")
    carry = build_carry("gate", core, ACTIONS)
    assert isinstance(carry, Gate)
    torch.nn.init.zeros_(carry.gate.weight)
    kept = tuple(t + torch.randn_like(t) for t in carry.initial(BATCH))
    for bias, expected in ((50.0, kept), (-50.0, core.initial_state(BATCH))):
        torch.nn.init.constant_(carry.gate.bias, bias)
        for field, wanted in zip(carry.to_core_state(kept, nowhere(), tokens_of()), expected, strict=True):
            torch.testing.assert_close(field, wanted)


def test_a_gate_sees_where_the_world_has_changed() -> None:
    core = core_of("trm")
    carry = build_carry("gate", core, ACTIONS)
    kept = tuple(t + torch.randn_like(t) for t in carry.initial(BATCH))
    tokens = tokens_of()
    changed = tokens.clone()
    changed[0, 4] += 1
    before, after = carry.to_core_state(kept, nowhere(), tokens), carry.to_core_state(kept, nowhere(), changed)
    moved = (after[0] != before[0]).any(-1)
    assert moved.nonzero().tolist() == [[0, 4]]


def test_what_the_variants_of_the_gate_see() -> None:
    """Carried: more or fewer latents; token: of the new observation. A leak has nothing to learn."""
    core, tokens = core_of("trm"), tokens_of()
    seen = {}
    for rule in ("gate", "gate_state", "gate_scalar", "leak"):
        carry = build_carry(rule, core, ACTIONS)
        assert isinstance(carry, Gate)
        kept = tuple(t + torch.randn_like(t) for t in carry.initial(BATCH))
        gates = carry.gates(kept, tokens)
        assert gates.shape == (*tokens.shape[:2], len(kept))
        moved = carry.gates(tuple(k + 1 for k in kept), tokens), carry.gates(kept, tokens + 1)
        seen[rule] = [not torch.equal(gates, other) for other in moved]
        torch.testing.assert_close(gates.sigmoid().mean(), torch.tensor(0.88), atol=0.03, rtol=0)
        weights = {name: list(w.shape) for name, w in carry.named_parameters()}
        assert (
            weights
            == {
                "gate": {"gate.weight": [2, 3 * core.hidden_size], "gate.bias": [2]},
                "gate_state": {"gate.weight": [2, 2 * core.hidden_size], "gate.bias": [2]},
                "gate_scalar": {"bias": [2]},
                "leak": {},
            }[rule]
        )
        assert list(carry.state_dict()) == list(weights)
    assert seen == {
        "gate": [True, True],
        "gate_state": [True, False],
        "gate_scalar": [False, False],
        "leak": [False, False],
    }


def test_rules_that_are_unknown_or_do_not_suit_the_core_are_refused() -> None:
    with pytest.raises(ValueError, match=r"carry='gates'.*reset, full, last_token, gate, gate_state, .*output"):
        build_carry("gates", core_of("trm"), ACTIONS)
    for rule in ("last_token", "gate", "gate_state", "gate_scalar", "leak", "output"):
        with pytest.raises(ValueError, match=rf"carry={rule}: .*, which ConvLSTM does not have; use carry=full"):
            build_carry(rule, core_of("convlstm"), ACTIONS)


@pytest.mark.parametrize("core", CORES)
def test_auto_is_a_gate_where_the_core_has_a_latent_for_every_token(core: str) -> None:
    made = core_of(core)
    rule = resolve_carry("auto", made)
    assert rule == ("gate" if core in ("trm", "hrm") else "full")
    build_carry(rule, made, ACTIONS)
    assert resolve_carry("reset", made) == "reset"
