"""Policies with the baseline cores and with stacked frames: windows, starts of episodes, gradients through time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from hrm_agent.agents.agent import Agent
from hrm_agent.algos.imitation import DAggerConfig
from hrm_agent.cores import core_options
from hrm_agent.evaluation.latents import trace_segments
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import candidates
from tiny import ACTIONS, BLOCKS, GRID, grids, make_trainer, tiny_policy
from windows import assert_window_equals_steps

K, BATCH = 5, 3
FRAMES = EncoderConfig(crop=1, patch_size=2, frames=3)
STACKED: dict[str, Any] = {
    "core": "feedforward",
    "carry": "reset",
    "core_options": {"layers": 1, **BLOCKS},
    "encoder": FRAMES,
}
POLICIES: dict[str, dict[str, Any]] = {
    "lstm": {"core": "lstm", "core_options": {"memory_size": 7}},
    "gru_flat": {"core": "gru", "core_options": {"memory_size": 7, "pooling": "flatten"}},
    "drc": {"core": "drc", "core_options": {"num_layers": 2, "repeats": 2, "features": 8}},
    "gtrxl": {"core": "gtrxl", "core_options": {"width": 8, "num_heads": 2, "layers": 2, "memory_steps": 3}},
    "vin": {"core": "vin", "core_options": {"iterations": 4, "q_channels": 4}},
    "frames": STACKED,
    "frames_and_carry": {"core": "trm", "carry": "gate", "encoder": FRAMES},
}


def make(name: str, **changes: Any) -> Policy:
    return tiny_policy(**{"carry": "auto", **POLICIES[name], **changes})


def starts() -> Tensor:
    """Row 2 goes on from before, row 1 begins anew at step 2, row 0 at the last."""
    start = torch.zeros(K, BATCH, dtype=torch.bool)
    start[0, :2] = start[2, 1] = start[K - 1, 0] = True
    return start


def lived(policy: Policy) -> tuple[Tensor, ...]:
    """The state after four steps, different in every row."""
    state, obs = policy.initial_state(BATCH), grids(4, BATCH, seed=5)
    start = torch.ones(BATCH, dtype=torch.bool)
    for t in range(4):
        state = policy.step(obs[t], state, start).state
        start = torch.zeros_like(start)
    return state


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_a_window_unrolled_equals_its_steps(name: str) -> None:
    policy = make(name)
    obs, start, state = grids(K, BATCH), starts(), lived(policy)
    assert [t.shape for t in state] == [t.shape for t in policy.initial_state(BATCH)]
    assert_window_equals_steps(policy, obs, start, state)


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_an_episodes_start_forgets_and_nothing_else_does(name: str) -> None:
    policy = make(name)
    obs, state = grids(BATCH), lived(policy)
    decided = policy.step(obs, state, torch.tensor([True, False, True])).logits
    anew = policy.step(obs, policy.initial_state(BATCH), torch.ones(BATCH, dtype=torch.bool)).logits
    torch.testing.assert_close(decided[[0, 2]], anew[[0, 2]])
    remembers = (decided[1] - anew[1]).abs().max() > 1e-4
    assert remembers == (name != "vin")


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("time_gradient", ["bptt", "detached"])
def test_the_gradient_reaches_back_through_the_window_up_to_an_episodes_start(name: str, time_gradient: str) -> None:
    policy = make(name, time_gradient=time_gradient)
    seen: list[Tensor] = []

    def keep(module: object, inputs: object, tokens: Tensor) -> None:
        tokens.retain_grad()
        seen.append(tokens)

    policy.encoder.register_forward_hook(keep)
    start = torch.zeros(3, BATCH, dtype=torch.bool)
    start[0], start[1, 1] = True, True
    policy.unroll(grids(3, BATCH), policy.initial_state(BATCH), start).logits[-1].square().sum().backward()
    assert seen[0].grad is not None
    reached = seen[0].grad[0].abs().sum((-2, -1)) > 0
    through_time = time_gradient == "bptt" and name not in ("vin", "frames")  # which have no latent of their own
    assert reached.tolist() == [through_time, False, through_time]


@pytest.mark.parametrize("name", POLICIES)
def test_an_agent_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    policy = make(name)
    Agent(policy, GRID, ACTIONS).save(tmp_path)
    loaded = Agent.load(tmp_path).policy
    obs, state, start = grids(BATCH), lived(policy), torch.tensor([True, False, False])
    with torch.no_grad():
        assert torch.equal(policy.step(obs, state, start).logits, loaded.step(obs, state, start).logits)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "frames_and_carry"])
def test_dagger_trains_every_core(name: str, tmp_path: Path) -> None:
    settings = {"hidden_size": 8, "carry": "auto", **POLICIES[name]}
    trainer = make_trainer(tmp_path, policy=settings, kind=DAggerConfig)
    before = [p.detach().clone() for p in trainer.policy.core.parameters()]
    trainer.learner.collect(trainer.collector, 0.5)
    measured = trainer.learner.update(0.5)
    assert np.isfinite(measured["imitation_loss"])
    assert all(not torch.equal(b, p) for b, p in zip(before, trainer.policy.core.parameters(), strict=True))


@pytest.mark.parametrize("choice", ["lstm", "gru", "gru_flat", "drc", "drc_small", "gtrxl", "vin"])
def test_every_option_with_a_value_can_be_typed(choice: str) -> None:
    """Hydra takes `core.NAME=VALUE` of names in the file alone; widths that follow from others are left out."""
    core = resolve(compose_config([f"core={choice}"], "train"))["core"]
    assert core_options(core["name"]).keys() - core.keys() <= {"inner_size"}


def test_the_kernels_of_the_pooling_gru_do_not_take_the_flattening_one() -> None:
    assert candidates(make("gru_flat").core) == ["plain"]


@torch.no_grad()
def test_frames_are_the_last_observations_newest_first_and_the_first_one_before_an_episode() -> None:
    policy = make("frames")
    assert policy.frames is not None
    obs, start = grids(K, BATCH), starts()
    start[0] = True
    stacked, carried, (past,) = policy.frames.stack(obs, policy.initial_state(BATCH), start)
    assert carried == ()
    for t in range(K):
        for row in range(BATCH):
            began = max(s for s in range(t + 1) if start[s, row])
            expected = [obs[max(began, t - age), row] for age in range(3)]
            assert torch.equal(stacked[t, row], torch.stack(expected, -1))
    assert torch.equal(
        past, torch.stack([obs[K - 1], torch.where(start[K - 1, :, None, None], obs[K - 1], obs[K - 2])], 1)
    )


@torch.no_grad()
def test_a_grid_with_channels_is_stacked_behind_its_own() -> None:
    space = gym.spaces.Box(0, 5, (4, 4, 2), np.uint8)
    policy = tiny_policy(space, **{**STACKED, "readout": "mean", "encoder": EncoderConfig(frames=2)})
    assert policy.frames is not None
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (2, BATCH, 4, 4, 2)).astype(np.uint8))
    start = torch.tensor([[True] * BATCH, [False] * BATCH])
    stacked, _, _ = policy.frames.stack(obs, policy.initial_state(BATCH), start)
    assert torch.equal(stacked[1], torch.cat([obs[1], obs[0]], -1))
    assert policy.unroll(obs, policy.initial_state(BATCH), start).logits.shape == (2, BATCH, 4)


@torch.no_grad()
def test_every_frame_has_embeddings_of_its_own() -> None:
    policy = make("frames")
    assert policy.encoder.channels == 3
    obs, start = grids(2, BATCH), torch.tensor([[True] * BATCH, [False] * BATCH])
    forward = policy.unroll(obs, policy.initial_state(BATCH), start)
    backward = policy.unroll(obs.flip(0), policy.initial_state(BATCH), start)
    assert (forward.logits[1] - backward.logits[1]).abs().max() > 1e-3


@torch.no_grad()
def test_frames_in_a_state_from_elsewhere_are_made_ids() -> None:
    policy = make("frames")
    wild = tuple(torch.full_like(t, value) for t in policy.initial_state(BATCH) for value in [float("nan")])
    for state in (wild, tuple(1e30 * torch.ones_like(t) for t in wild), tuple(-torch.ones_like(t) for t in wild)):
        decided = policy.step(grids(BATCH), state, torch.zeros(BATCH, dtype=torch.bool))
        assert decided.logits.isfinite().all()
        assert decided.state[-1].max() <= 5
        assert decided.state[-1].min() >= 0


@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), gym.spaces.Box(-1.0, 1.0, (4,)), gym.spaces.Dict(a=GRID)])
def test_frames_of_other_observations_are_refused(space: gym.Space) -> None:
    with pytest.raises(ValueError, match=r"encoder.frames=3 stacks grids of ids"):
        tiny_policy(space, **{**STACKED, "readout": "mean"})


@torch.no_grad()
def test_latents_of_a_policy_with_frames_are_those_it_decides_with() -> None:
    policy = make("frames_and_carry")
    obs, state, start = grids(BATCH), lived(policy), torch.tensor([True, False, False])
    states, logits = trace_segments(policy, obs, state, start, 1)
    step = policy.step(obs, state, start)
    torch.testing.assert_close(logits[0], step.logits)
    torch.testing.assert_close(states[1][0], step.state[0])


def test_a_policy_without_frames_is_described_as_before() -> None:
    assert "frames" not in tiny_policy().config.to_dict()["encoder"]
    assert make("frames").config.to_dict()["encoder"]["frames"] == 3
