"""`watch think=true`: a panel a segment, which shows what the decision was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hrm_agent.agents.agent import Agent, AgentOverrides
from hrm_agent.environments.make import make_env
from hrm_agent.evaluation.thinking import ThinkingActor, cells_of_tokens
from hrm_agent.evaluation.thinking_video import (
    HEADER,
    MOST_SEGMENTS,
    MOVED,
    MOVED_IN_FOG,
    TITLE,
    ThinkingView,
    colours_of,
)
from hrm_agent.evaluation.video import MARGIN, SCALE, Caption, record_episodes
from hrm_agent.policies.policy import Policy
from hrm_agent.watch import watch
from hrm_envs import Cell
from hrm_envs.rendering import FLOOR, FOG
from tiny import ACTIONS, MAZE, QUICK, SIDE, tiny_policy

ENV = "DynamicMaze-v0"
SMALL = {"memory_size": 4}
CAPTION = Caption(ENV, "episode 1 of 1, greedy", "step 0 of 9", "", None)


class Seven:
    def read(self, latents: Tensor, segment: int) -> Tensor:
        return torch.full(latents.shape[:-1], 7.0)


def maze_policy(**changes: Any) -> Policy:
    return tiny_policy(make_env(ENV, MAZE).observation_space, **{"core_options": QUICK, **changes})


def colours_in(frame: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, frame.reshape(-1, 3).tolist()))


def as_tuple(colour: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in colour)


@pytest.mark.parametrize("view", [None, 1])
def test_open_cells_have_the_colour_of_their_tokens_change(view: int | None) -> None:
    options = MAZE if view is None else {**MAZE, "view": view}
    policy = maze_policy(segments=2)
    env = make_env(ENV, options)
    obs, _ = env.reset(seed=0)
    shown, actor = ThinkingView(policy), ThinkingActor(policy)
    shown.reset(0)
    assert shown.act(obs) == actor.think(obs).action
    seen = colours_in(shown.draw(env, obs, CAPTION))
    thought, cells = actor.think(obs), cells_of_tokens(policy)
    assert cells is not None
    for moved in thought.latent_change:
        for token, places in enumerate(cells):
            for kind, scale in ((Cell.EMPTY, MOVED), (Cell.UNKNOWN, MOVED_IN_FOG)):
                if any(obs[place] == kind for place in places):
                    assert as_tuple(colours_of(moved, scale)[token]) in seen


def test_colours_begin_with_the_floor_and_darken() -> None:
    changes = np.linspace(0, 1.5, 200, dtype=np.float32)
    for scale, first, sign in ((MOVED, FLOOR, -1), (MOVED_IN_FOG, FOG, 1)):
        colours = colours_of(changes, scale).astype(int)
        assert as_tuple(colours[0]) == first
        assert (sign * np.diff(colours.sum(1)) >= 0).all()
        assert (colours[changes >= 1] == colours[-1]).all()


@pytest.mark.parametrize("segments", [1, 5])
def test_as_many_pictures_as_without_thinking_and_of_one_size(segments: int) -> None:
    policy = maze_policy(segments=segments)
    plain = record_episodes(policy, ENV, MAZE, 1, seed=3)
    view = ThinkingView(policy, Seven())
    frames = record_episodes(policy, ENV, MAZE, 1, seed=3, view=view)
    assert len(frames) == len(plain)
    assert len({frame.shape for frame in frames}) == 1
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    assert len({frame.tobytes() for frame in frames[:4]}) == 4
    without = record_episodes(policy, ENV, MAZE, 1, seed=3, view=ThinkingView(policy))
    assert not np.array_equal(frames[0], without[0])  # the probe's numbers and what they mean


def test_segments_that_are_not_run_stay_pale() -> None:
    env = make_env(ENV, MAZE)
    obs, _ = env.reset(seed=0)
    frames = []
    for threshold in (0.0, 1e9):
        view = ThinkingView(maze_policy(segments=2, stop="latent_change", stop_threshold=threshold))
        view.reset(0)
        view.act(obs)
        frames.append(view.draw(env, obs, CAPTION))
    both, one = frames
    middle = both.shape[1] // 2
    above_bars = MARGIN + HEADER + TITLE + SIDE * SCALE
    assert np.array_equal(both[:above_bars, : middle - 10], one[:above_bars, : middle - 10])
    assert one[:, middle + 10 :].min() > both[:, middle + 10 :].min() + 50


@pytest.mark.parametrize(
    ("env_id", "options", "changes"),
    [
        (
            "CartPole-v1",
            {"max_episode_steps": 3},
            {"core": "gru", "readout": "mean", "core_options": {"memory_size": 4}},
        ),
        ("Pendulum-v1", {"max_episode_steps": 2}, {"core": "feedforward", "readout": "mean", "core_options": {}}),
        (ENV, MAZE, {"core": "gru", "core_options": SMALL}),
    ],
)
def test_what_has_no_latent_per_cell_is_shown_too(
    env_id: str, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    pytest.importorskip("pygame")
    env = make_env(env_id, options)
    policy = tiny_policy(env.observation_space, actions=env.action_space, segments=2, **changes)
    frames = record_episodes(policy, env_id, options, 1, view=ThinkingView(policy, Seven()))
    assert len({frame.shape for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) > 2


def test_too_many_segments_are_refused_in_one_line(tmp_path: Path) -> None:
    for changes in ({"segments": MOST_SEGMENTS + 1}, {"first_segments": MOST_SEGMENTS + 1}):
        with pytest.raises(ValueError, match=r"17 segments: think=true shows 16 at most"):
            ThinkingView(maze_policy(**changes))


def test_watch_writes_it(tmp_path: Path) -> None:
    env = make_env(ENV, MAZE)
    info = {"env": ENV, "env_options": MAZE}
    Agent(maze_policy(), env.observation_space, ACTIONS, info).save(tmp_path / "agent")
    rates = {}
    for think in (False, True):
        out = tmp_path / f"{think}.gif"
        watch(str(tmp_path / "agent"), episodes=1, out=str(out), think=think, overrides=AgentOverrides(segments=2))
        with Image.open(out) as image:
            rates[think] = image.info["duration"]
    assert rates == {False: 120, True: 1000}
