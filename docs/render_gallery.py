"""`python docs/render_gallery.py [NAME ...]`: the videos of `gallery.md`, `docs/images/gallery/NAME.gif`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import hrm_agent
from hrm_agent.evaluation.video import encode_gif, record_episodes

FOLDER = Path(__file__).parent / "images" / "gallery"
WIDTH = 480  # pixels


class Scene(NamedTuple):
    """An agent by its id, in a world, on the levels `seed ... seed + episodes - 1` of the test split."""

    agent: str
    env: str
    options: Mapping[str, Any] = MappingProxyType({})
    episodes: int = 2
    seed: int = 0


SCENES = {
    "doors": Scene("DynamicMaze-TRM-v0", "DynamicMaze-v0", seed=11),
    "fog": Scene("DynamicMazeFog-TRM-v0", "DynamicMaze-v0", {"view": 2}, seed=3),
    "moving_goal": Scene("DynamicMaze-TRM-v0", "DynamicGoalMaze-v0", seed=5),
    "larger": Scene("DynamicMaze-TRM-v0", "DynamicMaze-v0", {"rows": 6, "cols": 6}, seed=2),
    "perfect": Scene("PerfectMaze-HRM-v0", "DynamicMaze-v0", {"layout": "braid", "loops": 0.0, "walls": 0, "doors": 0}),
    "paper": Scene("PaperMaze-HRM-v1", "PaperMaze-v1", seed=4),
    "four_rooms": Scene("PaperFourRooms-HRM-v1", "PaperFourRooms-v1", seed=1),
    "cue": Scene("CueMaze-TRM-v0", "CueMaze-v0", episodes=3),
    "cartpole": Scene("CartPole-HRM-v1", "CartPole-v1", episodes=1),
}
LONGEST = 90
"""Pictures of a video at most."""


def render(scene: Scene) -> bytes:
    options = dict(scene.options)
    policy = hrm_agent.make(scene.agent).fit_environment(scene.env, options).policy
    frames = record_episodes(policy, scene.env, options, scene.episodes, scene.seed, "test")[:LONGEST]
    height = round(frames[0].shape[0] * WIDTH / frames[0].shape[1])
    smaller = [np.asarray(Image.fromarray(f).resize((WIDTH, height), Image.Resampling.LANCZOS)) for f in frames]
    return encode_gif(smaller, fps=6)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SCENES:
        (FOLDER / f"{name}.gif").write_bytes(render(SCENES[name]))


if __name__ == "__main__":
    main()
