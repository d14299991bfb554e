"""Levels of several sizes: success by size, and the curve of success over size."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import run_command
from hrm_agent import Agent, make_env
from hrm_agent.environments.checked import EPISODE_LIMIT, episode_limit
from hrm_agent.environments.make import make_vector_env
from hrm_agent.environments.objects import identify
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.counterfactual import play_pairs
from hrm_agent.evaluation.episodes import ReplanActor, run_episodes
from hrm_agent.evaluation.level_sets import LevelSet, contents_of, hash_levels
from hrm_agent.evaluation.report import evaluate_policy, format_report, summarize, summarize_clairvoyant
from hrm_agent.evaluation.shifts import at_side, base_config, list_points
from hrm_agent.evaluation.video import record_episodes
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.shifts import shifts
from hrm_envs import MazeConfig

MAZE = "DynamicMaze-v0"
OPTIONS: dict[str, Any] = {"layout": "braid", "loops": 0.3, "doors": 1, "max_episode_steps": 20, "rows": 3, "cols": 3}
SIZED: dict[str, Any] = {**OPTIONS, "sizes": [7, 9, 11], "canvas": 13}
CORE = {"mixing": "conv", "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An agent with random weights, of mazes of three sizes."""
    folder = tmp_path_factory.mktemp("agent")
    torch.manual_seed(0)
    env = make_vector_env(MAZE, 1, SIZED)
    settings: dict[str, Any] = {"core_options": CORE, "hidden_size": 8, "encoder": EncoderConfig(1, 2)}
    policy = Policy(PolicyConfig(**settings), env.single_observation_space, env.single_action_space)
    torch.nn.init.normal_(policy.policy_head.weight)
    info = {"env": MAZE, "env_options": SIZED}
    Agent(policy, env.single_observation_space, env.single_action_space, info).save(folder)
    return str(folder)


def test_a_level_of_some_sizes_is_played_as_the_level_of_its_size_alone() -> None:
    """The same levels, met one by one in a frame and all together without one: actors that see no frame do the same."""
    mixed = run_episodes(ReplanActor(), MAZE, SIZED, 60, seed=5, split="validation")
    assert mixed.sides is not None
    assert mixed.clairvoyant is not None
    for side, alone in zip((7, 9, 11), base_config(MAZE, SIZED).each_size(), strict=True):
        options = {name: value for name, value in asdict(alone).items() if name not in ("split", "oracle")}
        own = run_episodes(ReplanActor(), MAZE, options, 60, seed=5, split="validation")
        assert own.sides is None
        assert own.clairvoyant is not None
        chosen = mixed.sides == side
        assert chosen.sum() > 5
        for name in ("success", "steps", "returns", "clairvoyant"):
            assert (getattr(mixed, name)[chosen] == getattr(own, name)[chosen]).all(), name


def test_success_by_size_adds_up() -> None:
    episodes = run_episodes(ReplanActor(), MAZE, SIZED, 80)
    found = summarize(episodes)
    bound = summarize_clairvoyant(episodes)
    assert bound is not None
    for summary in (found, bound):
        assert [size["side"] for size in summary["by_size"]] == [7, 9, 11]
        assert sum(size["episodes"] for size in summary["by_size"]) == 80
        total = sum(size["episodes"] * size["success"] for size in summary["by_size"])
        assert total == pytest.approx(80 * summary["success"])
        for size in summary["by_size"]:
            low, high = size["success_ci95"]
            assert low <= size["success"] <= high
    weighed = sum(size["episodes"] * size["spl"] for size in found["by_size"])
    assert weighed == pytest.approx(80 * found["spl"])
    assert "by_size" not in summarize(run_episodes(ReplanActor(), MAZE, OPTIONS, 5))


def test_a_report_has_a_table_by_size(run: str) -> None:
    report = evaluate(run, 40, split="validation")
    assert len(report["by_size"]) == len(report["bfs_replanner"]["by_size"]) == len(report["sampled"]["by_size"]) == 3
    lines = format_report(report).splitlines()
    for size, bound in zip(report["by_size"], report["clairvoyant"]["by_size"], strict=True):
        (line,) = (line for line in lines if line.startswith(f"{size['side']}x{size['side']}, {size['episodes']}"))
        assert f"{size['success']:.1%}" in line
        assert line.endswith(f"{bound['success']:.1%}")
    policy = Agent.load(run).policy
    quick = evaluate_policy(policy, MAZE, SIZED, 40)
    assert "by_size" not in quick
    for size in report["by_size"]:
        assert quick[f"success_{size['side']}"] == size["success"]
    larger = evaluate(run, 20, env_options={"sizes": [7, 15], "canvas": None}, baselines=False)
    assert [size["side"] for size in larger["by_size"]] == [7, 15]
    assert "BFS" not in format_report(larger)


def test_pairs_know_the_limits_of_their_levels() -> None:
    changing = {**SIZED, "p_change": 0.3, "doors": 3, "max_episode_steps": 9}
    levels = np.arange(400)
    pairs = play_pairs(ReplanActor, MAZE, changing, levels, "validation")
    limits = make_vector_env(MAZE, 400, {**changing, "split": "validation"})
    limits.reset(seed=0)
    assert len(pairs.level) > 5
    has_time = limits.unwrapped.limits[pairs.level] - pairs.step >= 10
    assert (np.isnan(pairs.extra_steps) == ~has_time).all()
    assert has_time.any()
    assert (~has_time).any()


def test_a_long_level_is_not_cut_off() -> None:
    long = {"sizes": [9, 59], "max_episode_steps": 300}
    limit = -(-300 * 29 * 29 // 16)
    assert limit > EPISODE_LIMIT
    env = make_vector_env(MAZE, 1, long)
    assert episode_limit(env) == limit


def test_films_and_single_environments_have_the_limit_of_the_level(run: str) -> None:
    env = make_env(MAZE, {**SIZED, "doors": 0, "loops": 0.0})
    seen = set()
    for seed in range(6):
        env.reset(seed=seed)
        limit, steps, arrived, late = env.unwrapped.level_limit, 0, False, False
        while not (arrived or late):
            _, _, arrived, late, _ = env.step(0)
            steps += 1
        if not arrived:
            assert steps == limit
            seen.add(limit)
    assert len(seen) > 1
    policy = Agent.load(run).policy
    frames = record_episodes(policy, MAZE, SIZED, 2, seed=0)
    assert len({np.asarray(frame).shape for frame in frames}) == 1


def test_a_frame_makes_no_level_new() -> None:
    """Levels that differ in their place alone are the same; and what is frozen includes the place."""
    tight = LevelSet(MAZE, {**OPTIONS, "sizes": [7, 9]}, "validation", 0, 60)
    wide = replace(tight, env_options={**OPTIONS, "sizes": [7, 9], "canvas": 15})
    assert contents_of(tight) == contents_of(wide)
    assert hash_levels(tight) != hash_levels(wide)
    assert hash_levels(wide) == hash_levels(wide)


BASES = (
    MazeConfig(),
    MazeConfig(sizes=(9, 13), canvas=17, layout="braid", doors=2, size_schedule=((0, 1, 0), (9, 1, 1))),
    MazeConfig(rows=5, cols=6, canvas=15),
)


@pytest.mark.parametrize("base", BASES, ids=("one size", "two sizes", "one in a frame"))
@pytest.mark.parametrize("side", [7, 13, 17, 31])
def test_a_point_of_the_curve_is_one_size_with_its_limit(base: MazeConfig, side: int) -> None:
    point = at_side(base, side)
    config = MazeConfig(**{**asdict(base), **point.changes})
    (alone,) = config.each_size()
    assert (alone.rows, alone.cols, point.side) == (side // 2, side // 2, side)
    expected = base.max_episode_steps * alone.rows**2 / (base.rows * base.cols)
    assert expected <= alone.max_episode_steps < expected + 1
    assert config.height == (max(side, base.height) if base.is_framed else side)
    assert config.size_schedule is None


def test_the_points_of_a_base_with_sizes_begin_with_these() -> None:
    points = list_points(BASES[1], ["size"], 10)
    assert [point.side for point in points] == [None, 9, 13, 17, 21]
    assert [p.side for p in list_points(BASES[0], ["size"], 10, [9, 13, 59])] == [9, 13, 59]  # 9 is as trained
    with pytest.raises(ValueError, match=r"sizes=\[9\] with axes=\['view'\], which has no size"):
        list_points(BASES[0], ["view"], 10, [9])
    with pytest.raises(ValueError, match="8 is even"):
        list_points(BASES[0], ["size"], 10, [8])


def test_the_command_draws_the_curve(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["axes=[size,view]", "sizes=[7,11,17]", "episodes=6", "out=s.json", "figure=s.png"]
    run_command(monkeypatch, "shifts", f"run={run}", *given)
    assert capsys.readouterr().out.splitlines()[-2:] == ["wrote s.json", "wrote s.png"]
    report = json.loads((tmp_path / "s.json").read_text())
    sizes = [record for record in report["records"] if record["axis"] == "size"]
    assert [record["side"] for record in sizes] == [7, 11, 17]
    assert [record["value"] for record in sizes] == ["7x7, 3x3 cells", "11x11, 5x5 cells", "17x17, 8x8 cells"]
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    for record in report["records"]:
        if record["axis"] == "size":
            assert record["bfs_replanner"]["episodes"] == 6
            assert len(record["sampled"]["success_ci95"]) == 2
    assert set(report["records"][0]["sampled"]) == {"success", "success_ci95", "spl", "by_size"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("figure=s.gif", "figure=s.gif: expected a name that ends in .png"),
        ("figure=nowhere/s.png", "figure=nowhere/s.png: expected a file in a folder that exists"),
        ("sizes=[8]", "8 is even; give odd sides of the grid"),
        ("sizes=9", "sizes"),
    ],
)
def test_a_wrong_size_or_figure_is_refused_in_one_line(
    argument: str, message: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "shifts", f"run={run}", "episodes=2", argument)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_figure_is_drawn_of_what_was_played(run: str) -> None:
    from hrm_agent.launch.plot_shifts import draw_shifts

    records = shifts(run, 3, axes=["size"], max_size=6)["records"]
    skipped = [{**record, "skipped": "no reason"} for record in records]
    assert draw_shifts([records[0], *skipped[1:]], "s.svg").startswith(b"<?xml")
    with pytest.raises(ValueError, match="was not played"):
        draw_shifts(skipped, "s.svg")


def test_a_given_environment_is_made_again_with_its_own_limits() -> None:
    env_id, options = identify(make_env(MAZE, SIZED), {})
    assert (env_id, options) == (MAZE, SIZED)
    assert make_vector_env(env_id, 1, options).unwrapped.config == base_config(MAZE, SIZED)
    assert identify(make_env(MAZE, {"sizes": [9]}), {})[1] == {"sizes": [9], "max_episode_steps": 60}
