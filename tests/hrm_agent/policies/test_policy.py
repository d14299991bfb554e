"""The policy: stepping equals unrolling, the gradient follows the settings, batch rows are independent."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hrm_agent.cores import map_state
from hrm_agent.policies.carry import CARRY_RULES
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.recurrence import relative_change
from hrm_agent.recurrence.unroll import read_token
from tiny import AGENT, CORES, GRID, SIDE, grids, tiny_policy
from windows import assert_window_equals_steps

K, BATCH = 4, 3
NO_TOKEN_LATENT = ("gru", "convlstm")
PAIRS = [
    (core, carry)
    for core in CORES
    for carry in CARRY_RULES
    if carry in ("reset", "full") or core not in (*NO_TOKEN_LATENT, "feedforward")
]


def starts() -> Tensor:
    """Episodes begin everywhere at step 0 but in row 2, in row 1 again at step 2, in row 0 at the last step."""
    start = torch.zeros(K, BATCH, dtype=torch.bool)
    start[0, :2] = start[2, 1] = start[3, 0] = True
    return start


def used_state(policy: Policy, batch: int = BATCH, seed: int = 9) -> tuple[Tensor, ...]:
    """A kept state with a past: no row is at the initial state, no two rows are equal."""
    state = policy.initial_state(batch)
    noise = torch.Generator().manual_seed(seed)
    return tuple(s + torch.randn(s.shape, generator=noise) for s in state)


@pytest.mark.parametrize("stop", [{}, {"stop": "latent_change", "stop_threshold": 0.3}])
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize(("core", "carry"), PAIRS)
@torch.no_grad()
def test_a_window_unrolled_equals_its_steps(core: str, carry: str, segments: int, stop: dict[str, Any]) -> None:
    if stop and core == "feedforward":
        pytest.skip("no latent")
    policy = tiny_policy(core=core, carry=carry, segments=segments, **stop)
    obs, start, state = grids(K, BATCH), starts(), used_state(policy)
    assert_window_equals_steps(policy, obs, start, state)


@pytest.mark.parametrize("carry", ["full", "last_token", "gate", "output"])
@torch.no_grad()
def test_the_past_counts_within_an_episode_and_not_across_its_start(carry: str) -> None:
    policy = tiny_policy(carry=carry)
    obs, one, other = grids(BATCH), used_state(tiny_policy(carry=carry)), used_state(policy, seed=10)
    start = torch.tensor([True, False, True])
    a, b = policy.step(obs, one, start), policy.step(obs, other, start)
    same = (a.logits == b.logits).all(-1)
    assert same.tolist() == [True, False, True]
    fresh = policy.step(obs, policy.initial_state(BATCH), torch.zeros(BATCH, dtype=torch.bool))
    torch.testing.assert_close(a.logits[0], fresh.logits[0])


@pytest.mark.parametrize("stop", ["fixed", "latent_change"])
@pytest.mark.parametrize("carry", ["full", "gate", "last_token", "output", "reset"])
@torch.no_grad()
def test_rows_that_start_an_episode_think_as_long_as_is_said(carry: str, stop: str) -> None:
    """In a mixed batch each row decides as in a batch of its own with that number of segments."""
    settings: dict[str, Any] = {"carry": carry, "stop": stop, "stop_threshold": 1e-9}
    policy = tiny_policy(segments=2, first_segments=5, **settings)
    short, long = (tiny_policy(segments=k, **settings) for k in (2, 5))
    for other in (short, long):
        other.load_state_dict(policy.state_dict())
    obs, state = grids(K, BATCH), used_state(policy)
    starts = torch.zeros(K, BATCH, dtype=torch.bool)
    starts[0, :2], starts[1], starts[K - 1, 1] = True, True, True
    window = policy.unroll(obs, state, starts)
    assert torch.equal(window.segments, torch.where(starts, 5, 2))
    for t in range(K):
        decision = policy.step(obs[t], state, starts[t])
        for row in range(BATCH):
            one = slice(row, row + 1)
            alone = (long if starts[t, row] else short).step(obs[t, one], tuple(s[one] for s in state), starts[t, one])
            torch.testing.assert_close(decision.logits[one], alone.logits)
            torch.testing.assert_close(window.logits[t, one], alone.logits, rtol=1e-5, atol=1e-5)
            for mine, theirs in zip(decision.state, alone.state, strict=True):
                torch.testing.assert_close(mine[one], theirs)
        state = decision.state


@torch.no_grad()
def test_reset_decides_the_same_whatever_came_before() -> None:
    policy = tiny_policy(carry="reset")
    obs = grids(K, BATCH)
    nothing = torch.zeros(BATCH, dtype=torch.bool)
    state = policy.initial_state(BATCH)
    for t in range(K - 1):
        state = policy.step(obs[t], state, nothing).state
    late = policy.step(obs[-1], state, nothing)
    first = policy.step(obs[-1], policy.initial_state(BATCH), ~nothing)
    assert torch.equal(late.logits, first.logits)
    assert late.state == ()


def seeded_slowly(policy: Policy, kept: tuple[Tensor, ...], row: int, x: Tensor) -> Any:
    """The core's state that a step of one row begins from, number by number."""
    state = map_state(Tensor.clone, policy.core.initial_state(1))
    rule, width = policy.config.carry, policy.config.hidden_size
    for f, field in enumerate(state):
        for token in range(x.shape[1]):
            if rule == "full":
                field[0, token] = kept[f][row, token]
            elif rule == "last_token":
                field[0, token] = kept[f][row]
            elif rule in ("gate", "gate_state", "gate_scalar", "leak"):
                if rule.startswith("gate_s"):
                    logit = policy.carry.bias[f] if rule == "gate_scalar" else policy.carry.gate.bias[f]
                elif rule == "gate":
                    logit = policy.carry.gate.bias[f] + policy.carry.gate.weight[f, -width:] @ x[0, token]
                else:
                    logit = torch.tensor(2.0)
                if rule in ("gate", "gate_state"):
                    seen = torch.cat([k[row, token] for k in kept])
                    logit = logit + policy.carry.gate.weight[f, : len(seen)] @ seen
                open_ = 1 / (1 + torch.exp(-logit))
                field[0, token] = open_ * kept[f][row, token] + (1 - open_) * field[0, token]
            elif rule == "output":
                field[0, token] += policy.carry.embed.weight[f * width : (f + 1) * width] @ kept[0][row]
    return state


@pytest.mark.parametrize("heads", ["actor_critic", "q"])
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("carry", CARRY_RULES)
@torch.no_grad()
def test_carry_rules_equal_their_slow_reference(carry: str, segments: int, heads: str) -> None:
    """Row by row and token by token, with the core called directly."""
    policy = tiny_policy(carry=carry, segments=segments, heads=heads)
    obs, kept = grids(BATCH), used_state(policy)
    decision = policy.step(obs, kept, torch.zeros(BATCH, dtype=torch.bool))
    for row in range(BATCH):
        x = policy.encoder(obs[row : row + 1])
        state = seeded_slowly(policy, kept, row, x)
        for _ in range(segments):
            y, state = policy.core(x, state)
        r, c = (int(i) for i in (obs[row] == AGENT).nonzero()[0])
        logits = policy.policy_head(y[0, (r - 1) // 2 * 3 + (c - 1) // 2])
        torch.testing.assert_close(decision.logits[row], logits, rtol=1e-5, atol=1e-5)
        expected = {
            "reset": [],
            "last_token": [field[0, -1] for field in state],
            "output": [logits if heads == "q" else logits.exp() / logits.exp().sum()],
        }.get(carry, [field[0] for field in state])
        assert len(decision.state) == len(expected)
        for after, wanted in zip(decision.state, expected, strict=True):
            torch.testing.assert_close(after[row], wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_q_heads_have_the_largest_q_value_for_their_value_and_no_value_head() -> None:
    policy = tiny_policy(heads="q")
    decision = policy.unroll(grids(K, BATCH), used_state(policy), starts())
    assert torch.equal(decision.value, decision.logits.amax(-1))
    assert not [name for name in policy.state_dict() if name.startswith("value_head")]


@pytest.mark.parametrize("stop", ["latent_change", "policy_kl"])
@pytest.mark.parametrize("carry", CARRY_RULES)
def test_adaptive_thinking_with_threshold_zero_equals_a_fixed_number_of_segments(carry: str, stop: str) -> None:
    """To the bit, in what is decided and in the gradient."""
    results = []
    for changes in ({}, {"stop": stop}):
        policy = tiny_policy(carry=carry, segments=3, **changes)
        decision = policy.unroll(grids(K, BATCH), used_state(policy), starts())
        gradient = torch.autograd.grad(decision.logits.square().sum(), list(policy.core.parameters()))
        results.append([decision.logits, *decision.state, *gradient])
        assert (decision.segments == 3).all()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@torch.no_grad()
def test_rounding_stops_nobody_whose_threshold_is_zero() -> None:
    """After many segments successive policies are equal to the last bit, and their divergence may round below 0."""
    policy = tiny_policy(segments=8, stop="policy_kl")
    obs, state, start = grids(200), policy.initial_state(200), torch.ones(200, dtype=torch.bool)
    for _ in range(8):
        decision = policy.step(obs, state, start)
        assert (decision.segments == 8).all()
        state, start = decision.state, torch.zeros_like(start)


@pytest.mark.parametrize("stop", ["latent_change", "policy_kl"])
@torch.no_grad()
def test_adaptive_thinking_stops_each_row_where_its_own_slow_reference_does(stop: str) -> None:
    rows, most = 24, 6
    fixed = tiny_policy(segments=most)
    obs, kept, nowhere = grids(rows), used_state(fixed, rows), torch.zeros(rows, dtype=torch.bool)
    after: list[list[Any]] = [[] for _ in range(rows)]  # the state and the logits of every segment, by row
    measured: list[list[float]] = [[] for _ in range(rows)]
    for row in range(rows):
        part = slice(row, row + 1)
        before = fixed.carry.to_core_state(tuple(k[part] for k in kept), nowhere[part], torch.empty(0))
        policy_before = None
        for segment in fixed.segment_by_segment(obs[part], tuple(k[part] for k in kept), nowhere[part]):
            moved = relative_change(before, segment.state).item()
            now = segment.decision.logits.log_softmax(-1)
            kl = torch.inf if policy_before is None else (now.exp() * (now - policy_before)).sum().item()
            measured[row].append(moved if stop == "latent_change" else kl)
            after[row].append(segment)
            before, policy_before = segment.state, now
    threshold = float(np.median([m[1] for m in measured]))
    decision = tiny_policy(segments=most, stop=stop, stop_threshold=threshold).step(obs, kept, nowhere)
    for row in range(rows):
        used = next((n for n, m in enumerate(measured[row], 1) if m < threshold), most)
        assert decision.segments[row] == used
        torch.testing.assert_close(decision.logits[row], after[row][used - 1].decision.logits[0], rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(decision.state, after[row][used - 1].decision.state, strict=True):
            torch.testing.assert_close(mine[row], theirs[0], rtol=1e-4, atol=1e-5)
    assert len(set(decision.segments.tolist())) > 1


def test_segment_by_segment_ends_where_a_step_does_and_cuts_the_gradient_between_segments() -> None:
    policy = tiny_policy(segments=3)
    obs, kept, start = grids(BATCH), used_state(policy), torch.tensor([True, False, False])
    segments = list(policy.segment_by_segment(obs, kept, start))
    step = policy.step(obs, kept, start)
    torch.testing.assert_close(segments[-1].decision.logits, step.logits)
    assert [s.decision.segments.tolist() for s in segments] == [[n] * BATCH for n in (1, 2, 3)]
    weights = list(policy.core.parameters())
    mine = torch.autograd.grad(segments[-1].decision.logits.square().sum(), weights)
    state = map_state(Tensor.detach, segments[1].state)
    output, _ = policy.core(policy.encoder(obs), state)
    expected = torch.autograd.grad(
        policy.policy_head(read_token(output, "agent", policy._readout_index(obs))).square().sum(), weights
    )
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_more_segments_change_the_decision() -> None:
    obs, start = grids(BATCH), torch.ones(BATCH, dtype=torch.bool)
    one, two = (tiny_policy(segments=k) for k in (1, 2))
    assert torch.equal(one.policy_head.weight, two.policy_head.weight)
    state = one.initial_state(BATCH)
    assert not torch.allclose(one.step(obs, state, start).logits, two.step(obs, state, start).logits)


def gradient_at_first_tokens(policy: Policy, start: Tensor) -> Tensor:
    """float[B]: size of the gradient of the last step's logits at the first step's tokens."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, tokens: Tensor) -> None:
        tokens.retain_grad()
        seen.append(tokens)

    handle = policy.encoder.register_forward_hook(keep)
    policy.unroll(grids(K, BATCH), policy.initial_state(BATCH), start).logits[-1].square().sum().backward()
    handle.remove()
    gradient = seen[0].grad
    assert gradient is not None
    assert gradient[-1].abs().sum() > 0
    return gradient[0].abs().sum((-2, -1))


@pytest.mark.parametrize("carry", ["full", "last_token", "gate", "gate_state", "gate_scalar", "leak", "output"])
def test_bptt_reaches_back_through_the_window_up_to_an_episodes_start(carry: str) -> None:
    start = torch.zeros(K, BATCH, dtype=torch.bool)
    start[0] = True
    start[2, 1] = True
    reached = gradient_at_first_tokens(tiny_policy(carry=carry), start) > 0
    assert reached.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("carry", "time_gradient"),
    [("full", "detached"), ("last_token", "detached"), ("gate", "detached"), ("output", "detached"), ("reset", "bptt")],
)
def test_no_gradient_crosses_a_step_where_it_is_cut(carry: str, time_gradient: str) -> None:
    start = torch.zeros(K, BATCH, dtype=torch.bool)
    reached = gradient_at_first_tokens(tiny_policy(carry=carry, time_gradient=time_gradient), start)
    assert not reached.any()


@pytest.mark.parametrize("core", ["trm", "hrm"])
def test_bptt_through_a_core_that_cuts_the_gradient_is_refused(core: str) -> None:
    options = {**CORES[core], "H_cycles": 2, "cycle_gradient": "last"}
    with pytest.raises(ValueError, match=r"cycle_gradient=last .*H_cycles=2.*cycle_gradient=all"):
        tiny_policy(core=core, core_options=options)
    tiny_policy(core=core, core_options=options, time_gradient="detached")
    tiny_policy(core=core, core_options=options, carry="reset")
    single = tiny_policy(core=core, core_options={**options, "H_cycles": 1, "L_cycles": 1})
    assert gradient_at_first_tokens(single, torch.zeros(K, BATCH, dtype=torch.bool)).all()


@pytest.mark.parametrize(("core", "carry"), PAIRS)
@torch.no_grad()
def test_rows_of_a_batch_are_independent(core: str, carry: str) -> None:
    policy = tiny_policy(core=core, carry=carry)
    obs, state, start = grids(K, BATCH), used_state(policy), starts()
    whole = policy.unroll(obs, state, start)
    for row in range(BATCH):
        rows = slice(row, row + 1)
        alone = policy.unroll(obs[:, rows], tuple(s[rows] for s in state), start[:, rows])
        torch.testing.assert_close(whole.logits[:, rows], alone.logits, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(whole.state, alone.state, strict=True):
            torch.testing.assert_close(mine[rows], theirs, rtol=1e-5, atol=1e-5)


def read_tokens(policy: Policy, obs: Tensor | dict[str, Tensor], batch: int) -> list[int]:
    """The index of the token that the value head reads in each row: the core's output is made to be indices."""

    def number_tokens(module: nn.Module, inputs: object, output: tuple[Tensor, object]) -> tuple[Tensor, object]:
        latent = torch.zeros_like(output[0])
        latent[:, :, 0] = torch.arange(latent.shape[1])
        return latent, output[1]

    policy.core.register_forward_hook(number_tokens)
    with torch.no_grad():
        policy.value_head.weight.zero_()
        policy.value_head.weight[0, 0] = 1
        value = policy.step(obs, policy.initial_state(batch), torch.ones(batch, dtype=torch.bool)).value
    return value.int().tolist()


@pytest.mark.parametrize(("crop", "patch"), [(0, 1), (1, 1), (1, 2), (0, 2), (1, 3)])
def test_the_heads_read_the_token_of_the_agents_cell(crop: int, patch: int) -> None:
    places = [(r, c) for r in range(crop, SIDE - crop) for c in range(crop, SIDE - crop)]
    obs = torch.zeros(len(places), SIDE, SIDE, dtype=torch.uint8)
    for row, (r, c) in enumerate(places):
        obs[row, r, c] = AGENT
    across = -(-(SIDE - 2 * crop) // patch)
    expected = [(r - crop) // patch * across + (c - crop) // patch for r, c in places]
    assert read_tokens(tiny_policy(crop=crop, patch=patch), obs, len(places)) == expected


def test_the_agent_is_found_behind_other_entries_and_in_the_first_channel() -> None:
    plain = grids(2)
    expected = read_tokens(tiny_policy(), plain, 2)
    entries = {"map": GRID, "compass": gym.spaces.Discrete(4), "speed": gym.spaces.Box(-1, 1, (2,), np.float32)}
    obs = {"map": plain, "compass": torch.tensor([0, 3]), "speed": torch.zeros(2, 2)}
    assert read_tokens(tiny_policy(gym.spaces.Dict(entries)), obs, 2) == [i + 2 for i in expected]
    layers = gym.spaces.Box(0, 5, (SIDE, SIDE, 2), np.uint8)
    stacked = torch.stack([plain, torch.full_like(plain, AGENT)], dim=-1)
    assert read_tokens(tiny_policy(layers), stacked, 2) == expected


@pytest.mark.parametrize(("readout", "token"), [("first", 0), ("last", 8), ("mean", 4)])
def test_other_readouts(readout: str, token: int) -> None:
    assert read_tokens(tiny_policy(readout=readout), grids(2), 2) == [token, token]


def test_what_does_not_fit_is_refused() -> None:
    vector = gym.spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(ValueError, match="readout=mean"):
        tiny_policy(vector, core="gru")
    with pytest.raises(ValueError, match="expected Discrete, Multi"):
        Policy(PolicyConfig(readout="mean"), GRID, gym.spaces.Text(3))
    with pytest.raises(ValueError, match=r"Q-values .* need Discrete; use algo=ppo"):
        Policy(PolicyConfig(readout="mean", heads="q"), GRID, vector)
    for changes, message in (
        ({"segments": 0}, "segments=0: expected an integer from 1 to 1,024"),
        ({"time_gradient": "all"}, "expected bptt or detached"),
        ({"readout": "middle"}, "expected one of agent, mean"),
        ({"hidden_size": 0}, "core.hidden_size=0: expected an integer from 1"),
        ({"carry": "ful"}, "full"),
        ({"stop": "settle"}, "fixed, latent_change, policy_kl"),
        ({"stop_threshold": -1.0}, "0 or more"),
        ({"heads": "dueling"}, "actor_critic or q"),
        ({"core": "feedforward", "stop": "latent_change"}, "no latent"),
        ({"heads": "q", "stop": "policy_kl"}, "needs a policy, not Q-values"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_policy(**changes)


def test_a_configuration_survives_its_dictionary() -> None:
    config = tiny_policy(carry="last_token", segments=2, positions="learned").config
    assert PolicyConfig.from_dict(config.to_dict()) == config
