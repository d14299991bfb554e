"""Carry rules: shapes of what is kept, fresh where an episode starts, and which cores they suit."""

from __future__ import annotations

import pytest
import torch
from tiny import CORES
from torch import Tensor

from hrm_agent.carry import CARRY_RULES, build_carry
from hrm_agent.cores import Core, build_core

BATCH, LENGTH, SIZE = 3, 9, 8


def core_of(name: str) -> Core:
    torch.manual_seed(0)
    return build_core(name, hidden_size=SIZE, length=LENGTH, grid=(3, 3), **CORES[name])


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("rule", ["reset", "full"])
def test_what_is_kept_has_the_shapes_of_the_initial_and_the_batch_first(core: str, rule: str) -> None:
    made = core_of(core)
    carry = build_carry(rule, made)
    initial = carry.initial(BATCH)
    _, state = made(torch.randn(BATCH, LENGTH, SIZE), carry.seed(initial, torch.zeros(BATCH, dtype=torch.bool)))
    kept = carry.keep(state)
    assert [t.shape for t in kept] == [t.shape for t in initial]
    assert all(t.shape[0] == BATCH for t in kept)
    if rule == "full":
        assert [t.shape for t in kept] == [t.shape for t in made.initial_state(BATCH)]


def test_last_token_keeps_one_vector_for_each_latent_and_gives_it_to_every_position() -> None:
    core = core_of("trm")
    carry = build_carry("last_token", core)
    state = type(core.initial_state(1))(*(torch.randn(BATCH, LENGTH, SIZE) for _ in range(2)))
    kept = carry.keep(state)
    assert [tuple(t.shape) for t in kept] == [(BATCH, SIZE)] * 2
    seeded = carry.seed(kept, torch.tensor([False, True, False]))
    fresh = core.initial_state(BATCH)
    for field, before, new in zip(seeded, state, fresh, strict=True):
        for position in range(LENGTH):
            assert torch.equal(field[0, position], before[0, -1])
            assert torch.equal(field[1, position], new[1, position])


@pytest.mark.parametrize("rule", CARRY_RULES)
def test_a_start_gives_the_cores_initial_state_to_that_row_alone(rule: str) -> None:
    core = core_of("hrm")
    carry = build_carry(rule, core)
    kept = tuple(t + torch.randn_like(t) for t in carry.initial(BATCH))
    seeded = carry.seed(kept, torch.tensor([True, False, True]))
    for field, new in zip(seeded, core.initial_state(BATCH), strict=True):
        fresh = [torch.equal(field[row], new[row]) for row in range(BATCH)]
        assert fresh == [True, rule == "reset", True]


@pytest.mark.parametrize("rule", CARRY_RULES)
def test_seeding_changes_nothing_that_was_kept(rule: str) -> None:
    carry = build_carry(rule, core_of("trm"))
    kept = carry.initial(BATCH)
    before = tuple(Tensor.clone(t) for t in kept)
    state = carry.seed(kept, torch.tensor([True, False, False]))
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert type(state) is type(carry.core.initial_state(1))


def test_rules_that_are_unknown_or_do_not_suit_the_core_are_refused() -> None:
    with pytest.raises(ValueError, match=r"carry='gates'.*reset, full, last_token"):
        build_carry("gates", core_of("trm"))
    with pytest.raises(ValueError, match=r"ConvLSTM has no latent per token; use carry=full"):
        build_carry("last_token", core_of("convlstm"))
