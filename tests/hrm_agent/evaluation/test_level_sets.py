"""Frozen levels are the levels they were, and a hash that would notice if they were not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrm_agent.evaluation import level_sets
from hrm_agent.evaluation.level_sets import (
    FILE,
    SEEN_BEFORE,
    Contents,
    LevelSet,
    count_repeats,
    find_level_set,
    freeze,
    hash_levels,
)
from hrm_envs import MazeVectorEnv
from hrm_envs.batch import MazeBatch

FEW = LevelSet("DynamicMaze-v0", count=40)
NAMES = list(json.loads(FILE.read_text()))


WORLDS = (
    "default", "paper", "paper_v1", "paper_four_rooms", "paper_four_rooms_v1", "moving_goal", "four_rooms", "braid",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_sets_are_what_they_were(name: str) -> None:
    levels = find_level_set(name)
    split = "validation" if "validation" in name else "development" if "2026_11" in name else "test"
    first = 2000 if name == "paper_four_rooms_v1" else 0  # before, one level repeats another
    assert (levels.split, levels.first, levels.count) == (split, first, 1000)


@pytest.mark.parametrize("name", WORLDS)
def test_no_level_of_a_set_is_another_that_was_seen_before(name: str) -> None:
    """As wholes. Rooms that are one map for all levels have few first maps, which the entry then says."""
    for kind in ("", "_validation"):
        levels = LevelSet(**json.loads(FILE.read_text())[f"{name}{kind}"])
        assert count_repeats(levels) == {"repeated": 0, "same_start": levels.same_start}
        assert levels.same_start == 0 or "four_rooms" in name


def test_the_shipped_sets_are_the_ones_promised() -> None:
    entries = json.loads(FILE.read_text())
    assert set(entries) >= {*WORLDS, *(f"{name}_validation" for name in WORLDS)}
    assert len({entry["sha256"] for entry in entries.values()}) == len(entries)


def test_the_retired_test_levels_are_those_that_were_frozen() -> None:
    """Hashes of the files of before, when their split was called `test`."""
    retired = {name: LevelSet(**entry).sha256[:12] for name, entry in json.loads(FILE.read_text()).items()}
    assert {name: retired[f"{name}_2026_11"] for name in ("default", "paper", "paper_four_rooms", "braid")} == {
        "default": "fe1e6c54d725",
        "paper": "940c97f0b186",
        "paper_four_rooms": "be1d7106e33f",
        "braid": "86219dc4793c",
    }


def test_repeats_are_counted() -> None:
    """The goal of a memory test is in one of two arms: all but the first two levels repeat one of these."""
    cues = LevelSet("CueMaze-v0", split="validation", count=30)
    assert count_repeats(cues) == {"repeated": 28, "same_start": 28}
    assert count_repeats(replace(cues, split="test")) == {"repeated": 30, "same_start": 30}
    rooms = LevelSet("PaperFourRooms-v1", split="validation", count=1000)
    again = count_repeats(rooms)
    assert again["repeated"] == 0 < again["same_start"]  # the doors move differently
    still = count_repeats(replace(rooms, env_options={"p_change": 0.0}))
    assert still["repeated"] == still["same_start"] == again["same_start"]
    known = count_repeats(LevelSet("DynamicMaze-v0", split="development", first=1_000_000, count=10))
    assert known["repeated"] == 0  # a set is not compared with the levels of its own split


@pytest.mark.parametrize("block", SEEN_BEFORE)
def test_a_test_level_that_was_seen_before_is_found(
    block: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the generator gave, for the test level 7, the level 3 of a block of levels seen before."""
    real = level_sets.contents_of

    def forged(levels: LevelSet) -> Contents:
        contents = real(levels)
        if levels.split == "test":
            seen = real(replace(levels, split=block[0], first=block[1] + 3, count=1))
            contents.starts[7:8], contents.wholes[7:8] = seen
        return contents

    monkeypatch.setattr(level_sets, "contents_of", forged)
    assert count_repeats(replace(FEW, count=10)) == {"repeated": 1, "same_start": 1}


CHANGED: list[dict[str, Any]] = [
    {"env_options": {"doors": 2}},
    {"env_options": {"walls": 4}},
    {"env_options": {"layout": "braid"}},
    {"env_options": {"p_change": 0.051}},
    {"env_options": {"door_process": "independent"}},
    {"env_options": {"goal_process": "jump", "p_goal": 0.05}},
    {"env_options": {"view": 2}},
    {"env_options": {"max_episode_steps": 61}},
    {"env": "DynamicFourRooms-v0"},
    {"split": "validation"},
    {"first": 1},
    {"count": 39},
]


@pytest.mark.parametrize("changes", CHANGED, ids=str)
def test_any_other_levels_have_another_hash(changes: dict[str, Any]) -> None:
    assert hash_levels(replace(FEW, **changes)) != hash_levels(FEW)


def test_the_same_levels_have_the_same_hash() -> None:
    assert hash_levels(FEW) == hash_levels(replace(FEW, env_options={"rows": 4, "oracle": False}))


def test_a_change_of_the_late_schedule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the probe's last step only the earliest arrivals see the schedule."""
    known = hash_levels(FEW)
    clairvoyant = MazeBatch.clairvoyant
    monkeypatch.setattr(
        MazeBatch, "clairvoyant", lambda batch: clairvoyant(batch) + np.eye(1, 40, 7, dtype=np.int32)[0]
    )
    assert hash_levels(FEW) != known


def test_what_follows_an_episode_is_no_part_of_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is hashed of the episode that begins where one has ended."""
    short = replace(FEW, env_options={"max_episode_steps": 5})
    known = hash_levels(short)
    step = MazeVectorEnv.step

    def scrambled(env: MazeVectorEnv, actions: np.ndarray) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated, infos = step(env, actions)
        seen[:] |= terminated | truncated
        obs[seen] = 9
        infos["distance"][seen] = 9
        return obs, rewards, terminated, truncated, infos

    seen = np.zeros(40, bool)
    monkeypatch.setattr(MazeVectorEnv, "step", scrambled)
    assert hash_levels(short) == known
    assert seen.all()


def test_a_set_whose_levels_have_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sets.json"
    entry = freeze(["mine", "DynamicMaze-v0", "doors=2", "layout=braid", "count=20", "first=5", "split=validation"])
    file.write_text(json.dumps(entry))
    found = find_level_set("mine", file)
    assert asdict(found) == entry["mine"]
    assert found.env_options == {"doors": 2, "layout": "braid"}
    file.write_text(json.dumps(entry).replace("split", "band"))  # its former name
    assert find_level_set("mine", file) == found
    entry["mine"]["env_options"]["doors"] = 1
    file.write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="level_set=mine: its levels have changed") as error:
        find_level_set("mine", file)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="level_set=papr: no such set; did you mean paper"):
        find_level_set("papr")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected python -m"),
        ("mine", "expected python -m"),
        ("doors=2 mine DynamicMaze-v0", "expected python -m"),
        ("mine CartPole-v1", "mazes of hrm_envs"),
        ("mine DynamicMase-v0", "did you mean DynamicMaze-v0"),
        ("mine DynamicMaze-v0 dors=1", "did you mean 'doors'"),
        ("mine DynamicMaze-v0 count=0", "count=0"),
        ("mine DynamicMaze-v0 first=zero", "first='zero': expected an integer from 0"),
        ("mine DynamicMaze-v0 band=tests", "split='tests'"),
    ],
)
def test_the_command_prints_an_entry_or_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["level_sets", "mine", "DynamicMaze-v0", "count=3"])
    level_sets.main()
    assert json.loads(capsys.readouterr().out)["mine"]["count"] == 3
    monkeypatch.setattr(sys, "argv", ["level_sets", *arguments.split()])
    with pytest.raises(SystemExit) as exit_:
        level_sets.main()
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
