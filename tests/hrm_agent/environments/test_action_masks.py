"""Masks of legal actions are found in infos and observations, and become an entry of the observation."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import masked_envs
from hrm_agent.environments import mask_search
from hrm_agent.environments.action_masks import (
    IGNORE,
    MASK,
    SETTING,
    MaskError,
    every_choice,
    has_mask,
    idle_actions,
    read_mask,
    sample_action,
    without_mask,
)
from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.environments.make import choose_env_workers, make_env, make_vector_env
from hrm_agent.environments.spaces import space_from_dict, space_to_dict
from hrm_agent.environments.workers import seconds_of_step
from hrm_agent.environments.wrappers import MaskInObservation, is_adapted
from hrm_agent.experience.truncation import stack_final_obs
from masked_envs import ACTIONS, FAULTS, PAIR, Masked

BITS = gym.spaces.MultiBinary(ACTIONS)
TAXI = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gym.registry)


@pytest.mark.parametrize("env_id", [TAXI, "Masked-v0"])
def test_a_mask_in_the_info_becomes_an_entry_of_the_observation(env_id: str) -> None:
    plain = gym.make(env_id)
    for env in (make_env(env_id), MaskInObservation(gym.make(env_id))):
        assert isinstance(env.observation_space, gym.spaces.Dict)
        bits = gym.spaces.MultiBinary(int(plain.action_space.n))
        assert dict(env.observation_space) == {"observation": plain.observation_space, MASK: bits}
        seen, info = plain.reset(seed=3)
        obs, stripped = env.reset(seed=3)
        for _ in range(4):
            assert obs in env.observation_space
            assert (obs["observation"], obs[MASK].tolist()) == (seen, info[MASK].tolist())
            assert set(info) - set(stripped) == {MASK}
            action = int(obs[MASK].argmax())
            (seen, _, _, _, info), (obs, _, _, _, stripped) = plain.step(action), env.step(action)


@pytest.mark.parametrize("shows", ["discrete", "grid", "parts"])
@pytest.mark.parametrize("where", ["info", "observation", "both"])
def test_single_and_vector_environments_hold_the_same_masks(where: str, shows: str) -> None:
    options = {"where": where, "shows": shows}
    many, ones = make_vector_env("Masked-v0", 3, options), [make_env("Masked-v0", options) for _ in range(3)]
    assert is_adapted(many.single_observation_space)
    entries = {MASK, "target", "time"} if shows == "parts" else {MASK, "observation"}
    assert set(many.single_observation_space) == entries  # type: ignore[call-overload]
    obs, infos = many.reset(seed=7)
    own = [env.reset(seed=7 + i)[0] for i, env in enumerate(ones)]
    for _ in range(12):
        assert MASK not in infos
        for i, each in enumerate(own):
            assert obs[MASK][i].tolist() == each[MASK].tolist()
        actions = obs[MASK].argmax(-1)
        obs, _, _, _, infos = many.step(actions)
        for i, env in enumerate(ones):
            own[i], _, done, cut, _ = env.step(int(actions[i]))
            if done or cut:
                final = stack_final_obs(infos["final_obs"], np.array([i]), many.single_observation_space)
                assert final[MASK][0].tolist() == own[i][MASK].tolist()
                assert own[i][MASK].any() != done  # after a termination nothing is legal
                own[i] = env.reset()[0]
        assert MASK not in infos.get("final_info", {})
    many.close()


@pytest.mark.parametrize("where", ["info", "observation"])
def test_a_vector_of_its_own_gives_what_single_ones_do(where: str) -> None:
    own = make_vector_env("MaskedVector-v0", 4, {"where": where})
    wrapped = make_vector_env("Masked-v0", 4)
    assert isinstance(own.unwrapped, masked_envs.MaskedVector)
    obs, other = own.reset(seed=2)[0], wrapped.reset(seed=2)[0]
    for _ in range(11):
        assert np.array_equal(obs[MASK], other[MASK])
        assert obs[MASK].dtype == np.int8
        actions = obs[MASK].argmax(-1)
        obs, _, _, _, infos = own.step(actions)
        other, _, _, _, theirs = wrapped.step(actions)
        assert MASK not in infos
        if "final_obs" in infos:
            rows = np.flatnonzero(theirs["_final_obs"])
            finals = [
                stack_final_obs(found["final_obs"], rows, env.single_observation_space)[MASK]
                for found, env in ((infos, own), (theirs, wrapped))
            ]
            assert np.array_equal(*finals)
    assert own.get_state()["steps"].tolist() == [1] * 4  # what it keeps is within reach


@pytest.mark.parametrize("where", ["info", "observation"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_mask_that_is_none_ends_the_run_with_one_line(fault: str, where: str) -> None:
    env = make_vector_env("Masked-v0", 2, {"fault": fault, "where": where})
    obs = env.reset(seed=0)[0]
    for _ in range(2):
        obs = env.step(obs[MASK].argmax(-1))[0]
    with pytest.raises(EnvironmentFailed) as raised:
        env.step(obs[MASK].argmax(-1))
    line = str(raised.value)
    said = {"empty": "allows no action", "short": "int8[4]", "text": "<U1[5]", "two": "holds 2", "missing": "no action"}
    assert line.startswith("env=Masked-v0: environment 0: step 3 of an episode: ")
    assert said[fault] in line
    assert "\n" not in line


def test_so_does_one_of_a_vector_of_its_own() -> None:
    env = make_vector_env("MaskedVector-v0", 3, {"fault": "empty"})
    obs = env.reset(seed=0)[0]
    with pytest.raises(EnvironmentFailed, match=r"env=MaskedVector-v0: step 1 .*: environment 2: its .*no action"):
        env.step(obs[MASK].argmax(-1))


@pytest.mark.parametrize("fault", ["empty", "short"])
def test_a_first_mask_that_is_none_is_refused_when_the_environment_is_made(fault: str) -> None:
    options = {"fault": fault, "at": 0}
    for make in (make_env, partial(make_vector_env, num_envs=2)):
        with pytest.raises(ValueError, match=r"^env=Masked-v0: its action_mask .*action_masks=ignore"):
            make("Masked-v0", options=options)
        make("Masked-v0", options={**options, "action_masks": "ignore"})


def test_a_mask_that_comes_late_is_not_left_unused() -> None:
    env = make_vector_env("Masked-v0", 2, {"fault": "missing", "at": 0})
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match=r"step 1 .*an action_mask in its info, .*action_masks=ignore"):
        env.step(np.array([masked_envs.situation(i, 0, 0)[0] for i in range(2)]))
    env = make_vector_env("Masked-v0", 2, {"fault": "missing", "at": 0, "action_masks": "ignore"})
    env.reset(seed=0)
    env.step(np.array([masked_envs.situation(i, 0, 0)[0] for i in range(2)]))


@pytest.mark.parametrize(
    ("entry", "actions", "says"),
    [
        (gym.spaces.MultiBinary(4), gym.spaces.Discrete(5), r"MultiBinary\(4\); expected MultiBinary\(5\)"),
        (gym.spaces.Box(0, 2, (5,), np.int8), gym.spaces.Discrete(5), r"is Box\(0, 2.*a bit for each action"),
        (gym.spaces.MultiBinary(2), gym.spaces.Box(0, 1, (2,)), r"needs actions that are Discrete .* not Box"),
        (None, gym.spaces.Discrete(5), "nothing but an action_mask"),
    ],
)
def test_an_entry_that_does_not_fit_the_actions_is_refused(entry: Any, actions: gym.Space, says: str) -> None:
    class Odd(Masked):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__("observation")
            entries = {MASK: entry, "observation": gym.spaces.Discrete(5)} if entry else {MASK: BITS}
            self.observation_space, self.action_space = gym.spaces.Dict(entries), actions

    gym.register("Odd-v0", entry_point=Odd)
    try:
        with pytest.raises(ValueError, match=f"^env=Odd-v0: .*{says}.*; action_masks=ignore"):
            make_env("Odd-v0")
        if entry is not None:
            assert not has_mask(make_env("Odd-v0", {"action_masks": "ignore"}).observation_space)
    finally:
        del gym.registry["Odd-v0"]


def test_masks_can_be_left_where_they_are() -> None:
    for where in ("info", "observation"):
        options = {"where": where, "action_masks": "ignore"}
        for space in (
            make_env("Masked-v0", options).observation_space,
            make_vector_env("Masked-v0", 2, options).single_observation_space,
            make_vector_env("MaskedVector-v0", 2, options).single_observation_space,
        ):
            assert not has_mask(space)
            assert (MASK in getattr(space, "spaces", {})) == (where == "observation")
    with pytest.raises(ValueError, match="action_masks='of': expected auto or ignore"):
        make_env("Masked-v0", {"action_masks": "of"})


def test_environments_without_masks_are_as_they_were() -> None:
    for env_id, kind in (("CartPole-v1", gym.spaces.Box), ("FrozenLake-v1", gym.spaces.Discrete)):
        assert isinstance(make_env(env_id).observation_space, kind)
    assert isinstance(make_env("DynamicMaze-v0").observation_space, gym.spaces.Box)


def test_one_reset_finds_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int | None] = []
    reset = Masked.reset

    def counted(self: Masked, *, seed: int | None = None, options: dict | None = None) -> Any:
        resets.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(mask_search, "_known", {})
    monkeypatch.setattr(Masked, "reset", counted)
    for _ in range(3):
        make_vector_env("Masked-v0", 4, {"length": 7})
        make_env("Masked-v0", {"length": 7, "render_mode": "rgb_array"})
    assert resets == [None]
    make_env("Masked-v0", {"length": 8})
    assert resets == [None, None]


@pytest.mark.parametrize("where", ["info", "observation"])
def test_processes_give_the_same_masks(where: str) -> None:
    options = {"where": where}
    apart, here = make_vector_env("Masked-v0", 4, options, workers=2), make_vector_env("Masked-v0", 4, options)
    obs, other = apart.reset(seed=1)[0], here.reset(seed=1)[0]
    for _ in range(7):
        assert np.array_equal(obs[MASK], other[MASK])
        actions = obs[MASK].argmax(-1)
        obs, other = apart.step(actions)[0], here.step(actions)[0]
    apart.close()


@pytest.mark.parametrize("options", [{}, {"pairs": True}, {"start": 3}, {"where": "observation"}])
def test_steps_that_are_timed_are_legal(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrm_agent.environments.workers.MEASURED", 0.02)
    seconds_of_step(make_env("Masked-v0", options))
    assert choose_env_workers("Masked-v0", 4, options, cores=2) is not None


def test_several_choices_have_their_masks_one_after_another() -> None:
    env = make_vector_env("Masked-v0", 3, {"pairs": True})
    assert env.single_observation_space[MASK] == gym.spaces.MultiBinary(sum(PAIR))  # type: ignore[index]
    obs = env.reset(seed=0)[0]
    for _ in range(9):
        obs = env.step(idle_actions(env, obs))[0]  # raises where one is not legal
    first, second = np.array([1, 0, 1]), np.array([0, 1, 0, 1])
    assert read_mask((first, second), list(PAIR)).tolist() == [1, 0, 1, 0, 1, 0, 1]  # as MultiDiscrete.sample has it
    with pytest.raises(MaskError, match="allows no action"):
        read_mask((first, 0 * second), list(PAIR))


@pytest.mark.parametrize("options", [{}, {"start": -2}])
def test_idle_actions_are_legal(options: dict[str, Any]) -> None:
    env = make_vector_env("Masked-v0", 3, options)
    obs = env.reset(seed=0)[0]
    for _ in range(9):
        actions = idle_actions(env, obs)
        assert obs[MASK][np.arange(3), actions - options.get("start", 0)].all()
        obs = env.step(actions)[0]


masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=3)


@given(masks, st.sampled_from([np.int8, np.uint8, np.int64, np.float32, bool]))
def test_masks_are_read_as_they_are(bits: list[list[bool]], kind: type) -> None:
    sizes, flat = [len(part) for part in bits], np.concatenate(bits)
    read = read_mask(flat.astype(kind), sizes, may_be_empty=True)
    assert read.dtype == np.int8
    assert read.tolist() == flat.astype(int).tolist()
    choices = [any(part) for part in bits]
    assert every_choice(flat.astype(bool), sizes).tolist() == choices
    if all(choices):
        assert read_mask(flat.astype(kind), sizes).tolist() == read.tolist()
    else:
        with pytest.raises(MaskError):
            read_mask(flat.astype(kind), sizes)


@given(masks, st.integers(0, 2**31 - 1))
def test_random_actions_are_legal(bits: list[list[bool]], seed: int) -> None:
    for part in bits:
        part[0] |= not any(part)
    mask = np.concatenate(bits).astype(np.int8)
    several = gym.spaces.MultiDiscrete([len(part) for part in bits], seed=seed)
    chosen = sample_action(several, {MASK: mask}, True)
    assert all(part[choice] for part, choice in zip(bits, chosen, strict=True))
    one = gym.spaces.Discrete(len(bits[0]), seed=seed, start=4)
    assert bits[0][int(sample_action(one, {MASK: np.array(bits[0])}, True)) - 4]


def test_spaces_with_a_mask_are_stored() -> None:
    space = make_env("Masked-v0", {"shows": "parts"}).observation_space
    again = space_from_dict(space_to_dict(space))
    assert again == space
    assert has_mask(again)
    assert without_mask(again) == Masked(shows="parts").observation_space
    assert without_mask(make_env("Masked-v0").observation_space) == gym.spaces.Discrete(ACTIONS)
    with pytest.raises(ValueError, match="not a space"):
        space_from_dict({"type": "MultiBinary", "n": 0})
    with pytest.raises(ValueError, match="at most"):
        space_from_dict({"type": "Dict", "spaces": {str(i): {"type": "MultiBinary", "n": 2**22} for i in range(3)}})


@pytest.mark.parametrize("env_id", ["Hanoi-v0", "ChessEndgame-v0"])
def test_environments_of_this_package_give_the_same_masks_alone_and_in_a_vector(env_id: str) -> None:
    alone, vector = make_env(env_id), make_vector_env(env_id, 2)
    assert has_mask(alone.observation_space)
    assert alone.observation_space == vector.single_observation_space
    one, many = alone.reset(seed=3)[0], vector.reset(seed=3)[0]
    for key, part in one.items():
        np.testing.assert_array_equal(part, many[key][0])
    ignored = {SETTING: IGNORE}
    assert not has_mask(make_env(env_id, ignored).observation_space)
    assert not has_mask(make_vector_env(env_id, 2, ignored).single_observation_space)
