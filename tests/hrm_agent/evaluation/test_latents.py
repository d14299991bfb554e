"""Latents: curves against a slow loop, targets against a plain search, probes on planted signals, interventions."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from experiments.carry_budget import latents as script
from hrm_agent.agents.agent import Agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation import latents, probes
from hrm_agent.evaluation.episodes import MOVES, PolicyActor, blocked_moves, run_episodes
from hrm_agent.evaluation.metrics import action_regret
from hrm_agent.policies.encoders import EncoderConfig, GridEncoder
from hrm_agent.policies.policy import Policy
from hrm_agent.policies.tokens import token_latents
from hrm_envs import Cell
from tiny import QUICK, tiny_policy

ENV = "DynamicMaze-v0"
BUSY: dict[str, Any] = {"rows": 3, "cols": 3, "walls": 1, "doors": 3, "p_change": 0.4, "max_episode_steps": 9}
SMALL = {**BUSY, "rows": 2, "walls": 0, "doors": 2}  # where an untrained agent ends some episodes early


def maze_policy(carry: str = "full", options: dict[str, Any] | None = None, **changes: Any) -> Policy:
    env = make_vector_env(ENV, 1, options or BUSY)
    return tiny_policy(env.single_observation_space, carry=carry, **{"core_options": QUICK, **changes})


def slow_curves(policy: Policy, episodes: int, segments: int) -> dict[tuple[str, str], list[list[float]]]:
    """The curves of every decision, one episode and one segment at a time, straight from the core."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for level in range(episodes):
        env = make_vector_env(ENV, 1, {**SMALL, "split": "development", "oracle": True})
        obs, infos = env.reset(seed=level)
        kept, previous, ended, number = policy.initial_state(1), None, False, 0
        while not ended:
            grid, first = torch.as_tensor(obs), torch.tensor([number == 0])
            tokens = policy.encoder(grid)
            state = policy.carry.to_core_state(kept, first, tokens)
            vectors, regret = [torch.cat([s.flatten() for s in state])], [np.nan]
            decision = policy.step(grid, kept, first)
            for _ in range(segments):
                output, state = policy.core(tokens, state)
                vectors.append(torch.cat([s.flatten() for s in state]))
                at = int(policy.encoder.token_of(grid, Cell.AGENT))  # type: ignore[operator]
                action = policy.policy_head(output[:, at]).argmax(-1).numpy()
                regret += action_regret(
                    infos["distance"], infos["optimal_actions"], action, blocked_moves(obs)
                ).tolist()
            change = [np.nan] + [float((b - a).norm() / b.norm()) for a, b in itertools.pairwise(vectors)]
            kind = "unchanged"
            if number == 0:
                kind = "first"
            elif infos["changed"][0] or infos["material"][0]:
                kind = "material" if infos["material"][0] else "immaterial"
            targets = {"last": vectors[-1], "first": vectors[1], "seed": vectors[0], "previous": previous}
            curves = {f"mse_to_{n}": [mse(v, t) for v in vectors] for n, t in targets.items()}
            for name, curve in {**curves, "relative_change": change, "regret": regret}.items():
                found.setdefault((kind, name), []).append(curve)
            kept, previous, number = decision.state, vectors[policy.segments], number + 1
            obs, _, terminated, truncated, infos = env.step(decision.logits.argmax(-1).numpy())
            ended = bool(terminated[0] or truncated[0])
    return found


def mse(one: torch.Tensor, other: torch.Tensor | None) -> float:
    return float("nan") if other is None else float((one - other).square().mean())


@pytest.mark.parametrize("carry", ["reset", "full", "gate", "output", "last_token"])
def test_curves_equal_a_slow_loop(carry: str) -> None:
    policy = maze_policy(carry, SMALL, segments=2)
    played = run_episodes(PolicyActor(policy), ENV, SMALL, 5, split="development")
    assert played.steps[0] < 9  # rows move up when others have ended
    with torch.no_grad():
        expected = slow_curves(policy, episodes=5, segments=3)
    records = latents.latent_curves(policy, ENV, SMALL, 5, segments=3, split="development", batch=3)
    kinds = {kind for kind, _ in expected}
    assert kinds == {"first", "unchanged", "immaterial", "material"}  # or this tests too little
    for record in records:
        assert record["decisions"] == len(expected[record["kind"], "regret"])
        for name in latents.CURVES:
            rows = np.array(expected[record["kind"], name])
            known = ~np.isnan(rows)
            mean = np.where(known, rows, 0).sum(0) / np.where(known.sum(0) > 0, known.sum(0), np.nan)
            given = np.array(record[name], float)
            np.testing.assert_allclose(given, mean, rtol=2e-4, atol=1e-6, err_msg=f"{record['kind']} {name}")


@pytest.mark.parametrize("carry", ["reset", "full"])
def test_curves_end_and_begin_at_zero_and_kinds_add_up(carry: str) -> None:
    policy = maze_policy(carry)
    records = {r["kind"]: r for r in latents.latent_curves(policy, ENV, BUSY, 40, segments=3, batch=16)}
    played = run_episodes(PolicyActor(policy), ENV, BUSY, 40)
    assert sum(r["decisions"] for r in records.values()) == played.steps.sum()
    assert records["first"]["decisions"] == records["first"]["episodes"] == 40
    for record in records.values():
        assert record["mse_to_last"][-1] == record["mse_to_first"][1] == record["mse_to_seed"][0] == 0
        assert min(record["mse_to_last"][:-1]) > 0
        assert record["relative_change"][0] is None
        # What full carry is seeded with is what the decision before ended with; a fresh state is not.
        same = record["mse_to_previous"] == record["mse_to_seed"]
        assert same == (carry == "full" and record["kind"] != "first")
    assert records["first"]["mse_to_previous"] == [None] * 4


def test_thinking_on_leaves_the_policy_and_its_actions_alone() -> None:
    policy = maze_policy(segments=2)
    before = {name: weights.clone() for name, weights in policy.state_dict().items()}
    moments = list(latents.play(policy, ENV, BUSY, 10, batch=4))
    latents.latent_curves(policy, ENV, BUSY, 4, segments=5)
    again = list(latents.play(policy, ENV, BUSY, 10, batch=4))
    assert policy.segments == 2
    assert all(torch.equal(before[name], weights) for name, weights in policy.state_dict().items())
    for one, other in zip(moments, again, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_episodes_are_those_that_evaluation_plays() -> None:
    policy = maze_policy()
    played = run_episodes(PolicyActor(policy), ENV, BUSY, 30)
    success, steps = np.zeros(30, bool), np.zeros(30, int)
    for moment in latents.play(policy, ENV, BUSY, 30, batch=7):
        success[moment.episodes] |= moment.success
        steps[moment.episodes] += 1
    np.testing.assert_array_equal(success, played.success)
    np.testing.assert_array_equal(steps, played.steps)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=2, max_size=20))
def test_errors_are_over_episodes(rows: list[tuple[int, float]]) -> None:
    counts, values = (np.array(column) for column in zip(*rows, strict=True))
    mean, error = latents.mean_and_error((counts * values)[:, None], counts[:, None])
    if counts.sum() == 0:
        assert np.isnan(mean[0])
        return
    assert mean[0] == pytest.approx(np.average(values, weights=counts))
    equal = np.where(counts > 0, 3, 0)  # with equal counts it is the plain error of a mean of episodes
    chosen = values[counts > 0]
    _, error = latents.mean_and_error((equal * values)[:, None], equal[:, None])
    if len(chosen) > 1:
        assert error[0] == pytest.approx(chosen.std(ddof=1) / len(chosen) ** 0.5, abs=1e-9)
    else:
        assert np.isnan(error[0])


def search(grid: NDArray, start: tuple[int, int]) -> dict[tuple[int, int], int]:
    """A plain breadth-first search past walls and doors."""
    found, frontier = {start: 0}, [start]
    while frontier:
        row, col = frontier.pop(0)
        for near in ((row + down, col + right) for down, right in MOVES):
            if grid[near] not in (Cell.WALL, Cell.DOOR) and near not in found:
                found[near] = found[row, col] + 1
                frontier.append(near)
    return found


def random_map(seed: int, height: int = 7, width: int = 9) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    grid = np.full((height, width), Cell.WALL, np.uint8)
    inside = [Cell.EMPTY] * 4 + [Cell.WALL, Cell.DOOR]
    grid[1:-1, 1:-1] = rng.choice(inside, (height - 2, width - 2))
    agent, goal = rng.choice((height - 2) * (width - 2), 2, replace=False)
    for position, cell in ((agent, Cell.AGENT), (goal, Cell.GOAL)):
        grid[1 + position // (width - 2), 1 + position % (width - 2)] = cell
    return grid


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(0, 1), (1, 1), (1, 2), (0, 3)]))
def test_targets_equal_a_plain_search(seed: int, shape: tuple[int, int]) -> None:
    crop, patch = shape
    grid = random_map(seed)
    height, width = grid.shape
    encoder = GridEncoder(make_space(height, width), 4, EncoderConfig(crop, patch))
    targets = probes.cell_targets(np.stack([grid, grid.copy()]), encoder)
    agent, goal = (tuple(int(x) for x in np.argwhere(grid == cell)[0]) for cell in (Cell.AGENT, Cell.GOAL))
    ahead, behind = search(grid, goal), search(grid, agent)
    for token in range(encoder.length):
        row, col = divmod(token, encoder.grid[1])  # type: ignore[index]
        places = [(crop + row * patch + i, crop + col * patch + j) for i in range(patch) for j in range(patch)]
        places = [p for p in places if p[0] < height - crop and p[1] < width - crop]
        free = [p for p in places if grid[p] not in (Cell.WALL, Cell.DOOR)]
        usable = bool(free) and agent not in places and goal not in places
        assert targets.path_known[0, token] == (usable and agent in ahead)
        assert targets.distance_known[0, token] == (usable and free[0] in ahead)
        if targets.distance_known[0, token]:
            assert targets.distance[0, token] == pytest.approx(np.log1p(ahead[free[0]]))
        if targets.path_known[0, token]:
            via = ahead.get(free[0], 10**6) + behind.get(free[0], 10**6)
            assert targets.path[0, token] == (via == ahead[agent])
    for name, column in zip(targets._fields, targets, strict=True):
        np.testing.assert_array_equal(column[0], column[1], err_msg=name)


def make_space(height: int, width: int) -> Any:
    import gymnasium as gym

    return gym.spaces.Box(0, int(max(Cell)), (height, width), np.uint8)


def test_regret_on_the_map_is_the_oracles() -> None:
    moments = 0
    for moment in latents.play(maze_policy(), ENV, BUSY, 40):
        oracle, blocked = moment.infos, blocked_moves(moment.obs)
        expected = action_regret(oracle["distance"], oracle["optimal_actions"], moment.actions, blocked)
        np.testing.assert_array_equal(latents.map_regret(moment.maps, moment.actions), expected)
        moments += 1
    assert moments > 3


def test_ridge_is_least_squares_and_balanced_classes_weigh_the_same() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=rng)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 3 + 0.1 * torch.randn(200, generator=rng)
    probe = probes.RidgeProbe(ridge=0.0)
    probe.add(x[:50], y[:50])
    probe.add(x[50:], y[50:])
    weights, intercept = probe.fit()
    full = np.linalg.lstsq(np.c_[x.numpy(), np.ones(200)].astype(float), y.numpy().astype(float), rcond=None)[0]
    np.testing.assert_allclose([*weights, intercept], full, rtol=1e-6)

    label = y > 3
    once, often = probes.RidgeProbe(balanced=True), probes.RidgeProbe(balanced=True)
    once.add(x, label)
    for part in (x[label], x[~label], x[~label], x[~label]):
        often.add(part, torch.full((len(part),), part is not x and bool((part == x[label][0]).all(1).any())))
    np.testing.assert_allclose(once.fit()[0], often.fit()[0], rtol=1e-8)
    with pytest.raises(ValueError, match="no example"):
        probes.RidgeProbe().fit()


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    found = probes.auc(scores, labels)
    assert found == pytest.approx(np.mean(pairs)) if pairs else np.isnan(found)


def test_probes_find_a_planted_signal_and_the_input_has_none() -> None:
    rng = np.random.default_rng(0)
    cells = probes.CellProbes()
    direction = rng.normal(size=(2, 6))
    for learn in (True, False):
        path, distance = rng.random((30, 20)) < 0.2, rng.random((30, 20))
        known = rng.random((30, 20)) < 0.8
        noise = rng.normal(size=(2, 30, 20, 6))
        planted = path[..., None] * direction[0] + distance[..., None] * direction[1] + 0.05 * noise[0]
        features = {name: [torch.from_numpy(noise[1])] for name in ("random", "input", "input_3x3")}
        features["latent"] = [torch.from_numpy(noise[1]), torch.from_numpy(planted)]
        cells.see(features, probes.CellTargets(path, known, distance, known), learn)
    records = {r["features"]: r for r in cells.records()}
    assert min(records["latent"][m][1] for m in probes.SCORES) > 0.9
    for silent in (records["input"], {m: records["latent"][m][:1] for m in probes.SCORES}):
        assert abs(silent["path_auc"][0] - 0.5) < 0.1
        assert abs(silent["path_balanced_accuracy"][0] - 0.5) < 0.1
        assert silent["distance_r2"][0] < 0.1


@pytest.mark.parametrize("carry", ["reset", "full"])
def test_a_network_with_random_weights_is_its_own_control(carry: str) -> None:
    policy = probes.fresh_policy(maze_policy(carry, segments=2), ENV, BUSY, seed=5)
    torch.manual_seed(6)
    stream = torch.get_rng_state()
    found = probes.probe_cells(policy, ENV, BUSY, 30, 20, segments=3, batch=16, fresh_seed=5)
    assert torch.equal(stream, torch.get_rng_state())
    records = {r.pop("features"): r for r in found}
    assert records["latent"] == records["random"]
    assert [len(records[name]["path_auc"]) for name in probes.FEATURES] == [4, 4, 1, 1]
    if carry == "reset":  # the initial state is the same at every token and says nothing
        assert records["latent"]["path_auc"][0] == records["latent"]["path_balanced_accuracy"][0] == 0.5
        assert records["latent"]["distance_r2"][0] <= 0


def test_latents_of_tokens_and_neighbours_stand_where_the_tokens_do() -> None:
    policy = maze_policy(core="convlstm", core_options={"layers": 2, "ticks": 1})
    state = policy.core.initial_state(2)
    marked = type(state)(*(torch.zeros_like(s) for s in state))
    marked.h[1, :, 2, 0] = 1
    tokens = token_latents(marked)
    assert tokens.shape == (2, 9, 2 * 2 * 8)
    assert tokens.any(-1).nonzero().tolist() == [[1, 2 * 3 + 0]]
    image = torch.arange(9.0).view(1, 9, 1)
    around = probes.with_neighbours(image, policy.encoder)
    assert around[0, 4].tolist() == list(range(9))
    assert around[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 3, 4]


def test_a_reset_agent_does_not_feel_what_happens_to_the_carried_state() -> None:
    control, swap, once = latents.intervene(
        maze_policy("reset"), ENV, BUSY, 60, at=2, lags=4, batch=32, interventions=("swap", "reset_once")
    )
    for touched in (swap, once):
        assert {**touched, "intervention": "control"} == control


@pytest.mark.thorough
@pytest.mark.parametrize("carry", ["full", "gate", "output", "last_token"])
def test_a_carrying_agent_feels_it(carry: str) -> None:
    policy = maze_policy(carry, seed=1)
    records = latents.intervene(policy, ENV, BUSY, 60, at=2, lags=4, batch=32, interventions=("swap", "reset_once"))
    assert records[0]["other_action"] == 0
    assert all(r["other_action"] > 0 for r in records[1:])
    assert len({r["episodes"] for r in records}) == 1
    alone = latents.intervene(policy, ENV, BUSY, 6, at=2, batch=1, interventions=("swap",))
    assert {**alone[1], "intervention": "control"} == alone[0]  # no other episode to swap with


@pytest.mark.parametrize("view", ["full", 2])
def test_a_shifted_goal_is_a_goal(view: int | str) -> None:
    env = make_vector_env(ENV, 12, {**BUSY, "view": view, "oracle": True, "p_change": 0.0})
    env.reset(seed=0)
    maze: Any = env.unwrapped
    before, rows = maze.get_state(), np.arange(2, 12)
    seen_before = maze.observe()
    moved = latents.shift_goals(env, rows, rows + 100)
    after, seen = maze.get_state(), maze.observe()
    assert moved.any()
    for row in range(12):
        grid, old = after["grid"][row], before["grid"][row]
        shifted = row >= 2 and bool(moved[row - 2])
        assert np.flatnonzero(grid == Cell.GOAL).tolist() == [int(after["goal"][row])]
        assert (grid != old).sum() == (2 if shifted else 0)
        visible = seen_before[row] != Cell.UNKNOWN
        np.testing.assert_array_equal(seen[row] != Cell.UNKNOWN, visible)
        np.testing.assert_array_equal(seen[row][visible], grid.reshape(seen[row].shape)[visible])
    # The oracle goes on with the new goal: its distances are those of the map.
    _, _, terminated, _, infos = env.step(np.zeros(12, np.int64))
    maps = maze.get_state()["grid"].reshape(seen.shape)
    to_goal = latents.distances_from(maps, Cell.GOAL).reshape(12, -1)
    here = to_goal[np.arange(12), maze.get_state()["agent"]]
    np.testing.assert_array_equal(infos["distance"][~terminated], here[~terminated])


def test_a_shifted_goal_depends_on_the_level_alone() -> None:
    records = [
        latents.intervene(maze_policy("reset"), ENV, BUSY, 20, at=2, lags=3, batch=batch, interventions=["goal_shift"])
        for batch in (20, 3)
    ]
    assert records[0] == records[1]
    assert records[0][0]["regret"] != records[0][1]["regret"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: latents.latent_curves(p, ENV, BUSY, 4, segments=1), "at least the policy's own 2"),
        (lambda p: latents.latent_curves(p, "CueMaze-v0", {}, 4), "CueMaze-v0"),
        (lambda p: list(latents.play(p, ENV, BUSY, 0)), "episodes=0"),
        (lambda p: latents.intervene(p, ENV, BUSY, 4, interventions=["swop"]), "swop"),
        (lambda p: latents.intervene(p, ENV, BUSY, 4, at=0), "at=0"),
        (lambda p: latents.intervene(p, ENV, BUSY, 4, at=50), "no episode lasts"),
    ],
)
def test_what_cannot_be_measured_is_refused_on_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(maze_policy(segments=2))
    assert "\n" not in str(error.value)


def test_cores_without_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="no latent"):
        latents.latent_curves(maze_policy("reset", core="feedforward", core_options={}), ENV, BUSY, 2)
    with pytest.raises(ValueError, match="per token"):
        probes.probe_cells(maze_policy("full", core="gru", core_options={"memory_size": 4}), ENV, BUSY, 2, 2)


@pytest.mark.thorough
def test_one_command_measures_what_is_missing_and_redraws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = []
    for carry in ("reset", "full"):
        policy = maze_policy(carry)
        space = make_vector_env(ENV, 1, BUSY).single_observation_space
        agent = Agent(policy, space, make_vector_env(ENV, 1).single_action_space, {"env": ENV, "env_options": BUSY})
        runs.append(str(tmp_path / f"{carry}-arm_seed3"))
        agent.save(runs[-1])
    out = tmp_path / "found" / "latents.json"
    out.parent.mkdir()
    draw, drawn = script.draw, []
    monkeypatch.setattr(script, "draw", lambda records, folder: drawn.append(len(records)))
    small = ["--episodes", "12", "--probe-levels", "8", "8", "--segments", "3", "--at", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["latents.py", runs[0], *small])
    script.main()
    first = json.loads(out.read_text())
    monkeypatch.setattr(sys, "argv", ["latents.py", *runs, *small])
    script.main()
    records = json.loads(out.read_text())
    assert records[: len(first)] == first
    assert {(r["agent"], r["seed"], r["world"]) for r in records} == {
        ("reset-arm", 3, "as trained"),
        ("full-arm", 3, "as trained"),
    }
    assert len(records) == 2 * (len(latents.KINDS) + len(probes.FEATURES) + 1 + len(latents.INTERVENTIONS))
    assert all(not isinstance(value, dict) for r in records for value in r.values())
    assert drawn == [len(first), len(records)]
    monkeypatch.setattr(script, "draw", draw)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["latents.py", "--draw-only", "--out", str(out)])
    script.main()
    pictures = {"convergence.png", "divergence.png", "probe.png", "interventions.png"}
    assert {p.name for p in out.parent.glob("*.png")} == pictures
    table = capsys.readouterr().out
    success = next(r["success"] for r in records if r.get("intervention") == "control" and r["agent"] == "full-arm")
    assert f"| full-arm | 1 | 1 | {success:.3f} |" in table
