"""Runs on levels of several sizes: resumed bit for bit, in the middle of a schedule; labels for imitation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrm_agent.environments.make import make_labelled_vector_env
from hrm_agent.training.tracking import Console
from hrm_envs import Cell
from runs import assert_equal_bits, everything
from tiny import make_trainer

SIZED: dict[str, Any] = {
    "sizes": [7, 9, 11],
    "canvas": 13,
    "layout": "braid",
    "doors": 1,
    "rows": 3,
    "cols": 3,
    "max_episode_steps": 5,
    "size_schedule": [[0, 1, 0, 0], [2, 0, 1, 1], [6, 1, 1, 1]],
}


def test_a_run_on_several_sizes_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"env_options": SIZED, "total_steps": 256, "checkpoint_every": 64, "eval_episodes": 12}
    whole = make_trainer(tmp_path / "whole", **changes)
    whole.run(Console())
    episodes = whole.env.unwrapped.batch.state.episode
    assert episodes.max() > 2  # the schedule has gone on
    (tmp_path / "halves" / "checkpoints").mkdir(parents=True)
    shutil.copy(whole.checkpoints.paths()[0], tmp_path / "halves" / "checkpoints")
    resumed = make_trainer(tmp_path / "halves", **changes)
    torch.manual_seed(99)  # the global stream must not matter
    resumed.resume()
    assert resumed.updates < whole.updates
    resumed.run(Console())
    assert_equal_bits(everything(whole), everything(resumed))
    assert {"collector/env/size", "collector/env/corner"} <= everything(whole).keys()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "validation/success" in line]
    assert {"validation/success_7", "validation/success_9", "validation/success_11"} <= validated[-1].keys()


def test_labels_are_those_of_the_maze_in_its_frame() -> None:
    env = make_labelled_vector_env("DynamicMaze-v0", 40, SIZED)
    obs, infos = env.reset(seed=0)
    for _ in range(12):
        labels = infos["optimal_actions"]
        at = np.argwhere(obs == Cell.AGENT)
        assert len(at) == 40
        for (row, col), label, maze, distance in zip(at[:, 1:], labels, obs, infos["distance"], strict=True):
            assert label.any() == (distance > 0)
            for (down, across), good in zip(((-1, 0), (0, 1), (1, 0), (0, -1)), label, strict=True):
                assert not good or maze[row + down, col + across] not in (Cell.WALL, Cell.DOOR)
        obs, _, _, _, infos = env.step(labels.argmax(1))
