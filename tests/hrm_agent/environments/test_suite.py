"""The suite of harder worlds: every level trains, and its figures are graded and say what the page says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig

from experiments.suite import baselines as suite
from experiments.suite import draw
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import ReplanActor, run_episodes
from hrm_agent.launch.cli import UsageError, compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.train import check_run
from hrm_envs import Cell, MazeConfig

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "experiments" / "suite"
LEVELS = sorted(path.stem for path in (ROOT / "configs" / "experiment" / "suite").glob("*.yaml"))
BASELINES = {record["level"]: record for record in json.loads((FOLDER / "baselines.json").read_text())}
STUDY = yaml.safe_load((FOLDER / "study.yaml").read_text())


@cache
def composed(name: str) -> DictConfig:
    return compose_config([f"+experiment=suite/{name}"], "train")


def test_folder_study_and_figures_name_the_same_levels() -> None:
    assert sorted(STUDY["levels"]) == LEVELS
    assert list(BASELINES) == STUDY["levels"]
    assert set(STUDY["few"]["levels"] + STUDY["tuning"]["levels"]) <= set(LEVELS)


@pytest.mark.thorough
@pytest.mark.parametrize("name", LEVELS)
def test_a_level_composes_and_builds_a_policy(name: str) -> None:
    cfg = composed(name)
    check_run(cfg)
    assert (cfg.core.hidden_size, cfg.core.inner_size, cfg.eval_every) == (48, 96, 0)


@pytest.mark.parametrize("name", LEVELS)
def test_the_figures_are_those_of_the_level_as_it_is(name: str) -> None:
    env, record = resolve(composed(name))["env"], BASELINES[name]
    assert (record["env"], record["env_options"]) == (env["id"], env["options"])
    assert record["env_options"]["max_episode_steps"] == record["time_limit_by_rule"]
    assert set(record["references"]) == set(suite.references(env["options"]))
    assert record["split"] in ("development", "test")  # test levels of before are development now
    config = MazeConfig(**env["options"])
    side = name.rsplit("_", 1)[1]
    assert (config.height, config.width) == (int(side), int(side))


def test_the_references_play_in_the_world_that_agents_train_in() -> None:
    env = resolve(composed("all_17"))["env"]
    assert suite.load_world("all_17") == (env["id"], env["options"])


@pytest.mark.parametrize("name", LEVELS)
def test_the_figures_are_graded(name: str) -> None:
    record = BASELINES[name]
    bound, random = record["clairvoyant"], record["random"]
    assert bound["success"] >= 0.98
    assert 0 < random["success"] < 0.5 * bound["success"]
    for reference in record["references"].values():
        assert bound["success"] >= reference["success"] >= reference["spl"] > random["spl"]
        # No reference arrives before who knows the future, on average over the levels that it solves.
        assert reference["excess_steps"] >= 0
    best = record["references"][record["best_reference"]]
    assert best["spl"] == max(reference["spl"] for reference in record["references"].values())
    assert best["spl"] >= record["bfs_replanner"]["spl"]


def test_a_larger_maze_takes_longer() -> None:
    arrivals = [BASELINES[f"size_{side}"]["clairvoyant"]["steps"] for side in (13, 17, 21, 31)]
    assert arrivals == sorted(set(arrivals))


@pytest.mark.parametrize("name", [n for n in LEVELS if n.startswith(("change", "waiting"))])
def test_waiting_pays_where_the_level_says_so(name: str) -> None:
    references = BASELINES[name]["references"]
    assert references["waits"]["spl"] > references["BFS"]["spl"] + 0.05


@pytest.mark.parametrize("name", [n for n in LEVELS if n.startswith(("fog", "all"))])
def test_memory_pays_under_fog(name: str) -> None:
    references = BASELINES[name]["references"]
    assert references["remembers"]["success"] > references["BFS"]["success"] + 0.3


def test_decoys_are_mostly_immaterial() -> None:
    record = BASELINES["decoys_13"]
    assert record["changes_per_episode"] > 10
    assert record["material_share"] < 0.1


def test_a_level_has_the_columns_of_every_agent_whether_or_not_it_has_records() -> None:
    levels = list(BASELINES.values())
    run = {"agent": "hrm@size_13", "spl": 0.3, "frames": 1000, "curve": [[500, 1.0, 0.2], [1000, 2.0, 0.4]]}
    slow = {**run, "agent": "drc@size_13", "frames": 600, "curve": [[600, 2.0, 0.3]]}
    outcomes = [{"agent": "hrm@size_13", "success": "1100", "sampled": "1110"}]
    rows = [draw.level_row(level, ["hrm", "drc"], [run], outcomes) for level in levels]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert rows[0]["hrm, greedy"].startswith("**0.500** [")
    assert rows[0]["hrm, sampled"].startswith("0.750 [")
    assert (rows[0]["drc, greedy"], rows[1]["hrm, greedy"]) == ("", "")
    frames = draw.frames_row("size_13", ["hrm", "drc"], [run, slow])
    assert frames["at frames"] == "600"
    assert (frames["hrm, sampled in training"], frames["drc, sampled in training"]) == ("0.200", "0.300")


@pytest.mark.parametrize("choice", ["suite/size_14", "suit/size_13"])
def test_an_unknown_level_is_refused_on_one_line(choice: str) -> None:
    with pytest.raises(UsageError, match="no such experiment") as refused:
        compose_config([f"+experiment={choice}"], "train")
    assert "\n" not in str(refused.value)


SMALL = {"layout": "braid", "rows": 4, "cols": 4, "doors": 0, "max_episode_steps": 100}


def test_on_a_tree_to_wait_at_the_door_is_best() -> None:
    world = {**SMALL, "doors": 6, "door_process": "periodic", "p_change": 0.1}
    played = run_episodes(ReplanActor(), "DynamicMaze-v0", world, 60, oracle=False)
    assert played.clairvoyant is not None
    solvable = played.clairvoyant >= 0
    assert np.array_equal(played.steps[solvable], played.clairvoyant[solvable])


def test_without_fog_memory_changes_nothing() -> None:
    world = {**SMALL, "loops": 0.5, "doors": 3, "goal_process": "jump", "p_goal": 0.1}
    plain = run_episodes(ReplanActor(), "DynamicMaze-v0", world, 40, batch=16)
    remembering = run_episodes(ReplanActor(remembers=True), "DynamicMaze-v0", world, 40, batch=16)
    assert np.array_equal(plain.steps, remembering.steps)


def test_who_remembers_explores_a_tree_to_its_end() -> None:
    world = {**SMALL, "view": 1}
    remembering = run_episodes(ReplanActor(remembers=True), "DynamicMaze-v0", world, 40, batch=16)
    # A walk that never enters a branch twice passes each of the 15 edges at most twice, two steps each way.
    assert remembering.success.all()
    assert run_episodes(ReplanActor(), "DynamicMaze-v0", world, 40, oracle=False).success.mean() < 0.6


def test_memory_holds_what_was_seen_last() -> None:
    options = {**SMALL, "view": 2, "doors": 3, "p_change": 0.2, "goal_process": "walk", "p_goal": 0.3}
    env = make_vector_env("DynamicMaze-v0", 6, options)
    obs, _ = env.reset(seed=3)
    actor = ReplanActor(remembers=True)
    actor.reset(np.arange(6))
    last = obs.copy()
    for _ in range(30):
        seen = obs != Cell.UNKNOWN
        actions = actor.act(obs)
        assert actor.seen is not None
        assert np.array_equal(actor.seen[seen], obs[seen])
        assert ((actor.seen == Cell.AGENT).sum((1, 2)) == 1).all()
        assert ((actor.seen == Cell.GOAL).sum((1, 2)) <= 1).all()
        known = last != Cell.UNKNOWN
        assert (actor.seen[known] != Cell.UNKNOWN).all()
        last = actor.seen.copy()
        obs, _, terminated, truncated, _ = env.step(actions)
        if (terminated | truncated).any():
            break
    env.close()


def test_who_waits_takes_no_notice_of_doors() -> None:
    world = {**SMALL, "loops": 1.0, "doors": 6, "door_process": "periodic", "p_change": 0.3}
    env = make_vector_env("DynamicMaze-v0", 32, world)
    obs, _ = env.reset(seed=0)
    env.close()
    opened = np.where(obs == Cell.DOOR, np.uint8(Cell.EMPTY), obs)
    assert (obs == Cell.DOOR).any()
    waiting = suite.ReferenceActor(waits=True)
    assert np.array_equal(waiting.act(obs), ReplanActor().act(opened))
    assert (waiting.act(obs) != ReplanActor().act(obs)).any()
