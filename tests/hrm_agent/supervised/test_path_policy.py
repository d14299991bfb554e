"""A model of paths as an agent: as good as its paths, with the segments and the carry that its settings name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.episodes import ReplanActor, run_episodes
from hrm_agent.evaluation.report import format_report, to_json
from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.path_policy import PathActor, evaluate_path_policy, run_segments, step_along
from hrm_envs import Cell
from hrm_envs.planners import replan
from played import BUSY, MAZE, TIMINGS, assert_same, save_agent

TINY = {"mixing": "conv", "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 16}


class Thoughts(NamedTuple):
    count: Tensor  # float [B, 1], segments since the initial state


class Oracle(nn.Module):
    """The re-planner's paths after `needs` segments; before, all cells are alike."""

    def __init__(self, needs: int = 1, spoils: int = 10**6) -> None:
        super().__init__()
        self.needs, self.spoils = needs, spoils
        self.lm_head = nn.Linear(1, 2)
        self.began_with: list[list[int]] = []

    def initial_state(self, batch_size: int) -> Thoughts:
        return Thoughts(torch.zeros(batch_size, 1))

    def forward(self, state: Thoughts, batch: Mapping[str, Tensor]) -> tuple[Any, ...]:
        side = int(batch["inputs"].shape[1] ** 0.5)
        path = replan(batch["inputs"].view(-1, side, side).numpy().astype(np.uint8)).path.reshape(-1, side * side)
        self.began_with.append(state.count[:, 0].int().tolist())
        count = state.count + 1
        logits = torch.nn.functional.one_hot(torch.from_numpy(path).long(), 2) * (count >= self.needs)[..., None]
        # It would stop once it knows, a long way before it takes everything back.
        q_halt = torch.where((count[:, 0] >= self.needs) & (count[:, 0] < self.spoils), 1.0, -1.0)
        logits = torch.where((count >= self.spoils)[..., None], -logits, logits)
        return Thoughts(count), logits.float(), q_halt, torch.full_like(q_halt, 0.5)


def make_model(side: int = 9, answer_ids: int = 2, **changes: Any) -> PuzzleModel:
    torch.manual_seed(1)
    given: dict[str, Any] = {"crop": 1, "patch_size": 2, "grid": (side, side), **changes}
    return PuzzleModel(
        vocabulary_size=6,
        sequence_length=side**2,
        num_puzzles=1,
        hidden_size=8,
        puzzle_embedding_size=0,
        answer_ids=answer_ids,
        core_options=TINY,
        **given,
    )


@pytest.mark.parametrize("options", [{}, BUSY, {"view": 2}, {"layout": "braid", "walls": 0, "doors": 0}])
def test_with_the_replanners_paths_it_plays_as_the_replanner(options: dict[str, Any]) -> None:
    played = run_episodes(PathActor(Oracle(), 1), MAZE, options, 60, batch=25)
    reference = run_episodes(ReplanActor(), MAZE, options, 60)
    for name in ("success", "steps", "returns"):
        np.testing.assert_array_equal(getattr(played, name), getattr(reference, name), err_msg=name)
    assert played.success.mean() > 0.3


def test_segments_are_run_and_counted() -> None:
    patient, hasty = (run_episodes(PathActor(Oracle(needs=3), k), MAZE, BUSY, 40) for k in (3, 2))
    for played, segments in ((patient, 3), (hasty, 2)):
        assert played.segments is not None
        np.testing.assert_array_equal(played.segments, segments * played.steps)
    assert patient.success.mean() > hasty.success.mean() + 0.3


@pytest.mark.parametrize("rule", ["halt_only", "q_learning"])
def test_halting_keeps_what_was_right_and_counts_segments(rule: str) -> None:
    halted, stubborn = (
        run_episodes(PathActor(Oracle(needs=2, spoils=4), 5, halting=halting), MAZE, BUSY, 40)
        for halting in (rule, None)
    )
    reference = run_episodes(ReplanActor(), MAZE, BUSY, 40)
    np.testing.assert_array_equal(halted.steps, reference.steps)
    assert halted.segments is not None
    np.testing.assert_array_equal(halted.segments, 2 * halted.steps)
    assert stubborn.success.mean() < halted.success.mean() - 0.3


def test_each_view_halts_by_itself() -> None:
    """Some after the first segment, some later or never: as if each had been alone."""
    model, env = make_model(), make_vector_env(MAZE, 40)
    torch.nn.init.normal_(model.halting_head.weight)
    torch.nn.init.zeros_(model.halting_head.bias)
    views, _ = env.reset(seed=3)
    inputs = torch.from_numpy(views).int().flatten(1)
    with torch.no_grad():
        batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(40, dtype=torch.int32)}
        _, _, q_halt, _ = model(model.initial_state(40), batch)
        model.halting_head.bias[0] = -q_halt.median()  # half of them stop at once
        state, margin, used = run_segments(model, model.initial_state(40), views, 4, "halt_only")
        assert 10 < (used == 1).sum() < 30
        for row in range(40):
            alone, own, _ = run_segments(model, model.initial_state(1), views[[row]], int(used[row]))
            torch.testing.assert_close(margin[row], own[0])
            for kept, expected in zip(state, alone, strict=True):
                torch.testing.assert_close(kept[row], expected[0])


def test_the_latent_is_carried_within_episodes_only() -> None:
    fresh, carrying = Oracle(), Oracle()
    run_episodes(PathActor(fresh, 2), MAZE, BUSY, 30, batch=15)
    run_episodes(PathActor(carrying, 2, carry=True), MAZE, BUSY, 30, batch=15)
    assert all(set(began) <= {0, 1} for began in fresh.began_with)
    step = 0
    for number, began in enumerate(carrying.began_with[::2]):
        if number and set(began) == {0}:
            step = 0  # the second batch of episodes
        assert set(began) == {2 * step}
        step += 1
    assert sum(set(began) == {0} for began in carrying.began_with) == 2


def test_the_rows_that_are_kept_keep_their_own_latents() -> None:
    actor = PathActor(Oracle(), 1, carry=True)
    actor.reset(np.arange(5))
    actor.state = Thoughts(torch.arange(5.0)[:, None])
    actor.keep(np.array([1, 4]))
    assert isinstance(actor.state, Thoughts)
    assert actor.state.count[:, 0].tolist() == [1, 4]


def test_walls_are_never_chosen_and_closed_doors_are_waited_at() -> None:
    grid = np.full((1, 5, 5), Cell.WALL, np.uint8)
    grid[0, 2, 2], grid[0, 2, 3], grid[0, 3, 2] = Cell.AGENT, Cell.DOOR, Cell.EMPTY
    margin = np.zeros((1, 5, 5), np.float32)
    margin[0, 1, 2] = 9.0  # a wall
    assert step_along(grid, margin).tolist() == [1]  # equals: the first of N, E, S, W
    margin[0, 3, 2] = 1.0
    assert step_along(grid, margin).tolist() == [2]
    margin[0, 2, 3] = 2.0
    assert step_along(grid, margin).tolist() == [1]


@pytest.mark.thorough
@pytest.mark.parametrize("carry", [False, True])
def test_numbers_do_not_depend_on_batch_or_shards(carry: bool) -> None:
    model = make_model()
    whole = run_episodes(PathActor(model, 2, carry), MAZE, BUSY, 30)
    assert_same(whole, run_episodes(PathActor(model, 2, carry), MAZE, BUSY, 30, batch=7))
    reports = [
        evaluate_path_policy(model, MAZE, BUSY, 12, 2, carry, baselines=False, threads=threads)
        for threads in (None, Threads(2))
    ]
    numbers = [{k: v for k, v in r.items() if k not in TIMINGS} for r in reports]
    assert numbers[0] == numbers[1]


def test_the_report_has_the_entries_of_any_agents_report(tmp_path: Path) -> None:
    about = {"run": "RUN", "frames": 640, "seconds": 1.5, "training_seed": 3}
    report = evaluate_path_policy(make_model(), MAZE, BUSY, 12, segments=3, about=about)
    other = evaluate(run=save_agent(tmp_path, BUSY), episodes=12)
    assert set(report) == set(other)
    assert {k: report[k] for k in ("random", "bfs_replanner", "clairvoyant", "seeds", "split")} == {
        k: other[k] for k in ("random", "bfs_replanner", "clairvoyant", "seeds", "split")
    }
    assert (report["core"], report["carry"], report["segments_per_decision"]) == ("trm", "reset", 3)
    assert {k: report[k] for k in about} == about
    one = evaluate_path_policy(make_model(), MAZE, BUSY, 2, segments=1, baselines=False)
    assert report["macs_per_decision"] == pytest.approx(3 * one["macs_per_decision"], rel=1e-9)
    assert "3 segments a decision" in format_report(report)
    assert to_json(report)


def test_tokens_that_are_cells_play_too() -> None:
    report = evaluate_path_policy(make_model(crop=0, patch_size=1), MAZE, {}, 4, segments=1, baselines=False)
    assert report["episodes"] == 4


@pytest.mark.parametrize(
    ("changes", "env", "says"),
    [
        ({"side": 7}, MAZE, "9 x 9 cells.* for other puzzles with 2 answer ids"),
        ({"side": 7, "crop": 0, "patch_size": 1}, MAZE, "for other puzzles"),
        ({"answer_ids": 6}, MAZE, "for such puzzles with 6 answer ids"),
        ({}, "CartPole-v1", "env=CartPole-v1: expected a maze"),
    ],
)
def test_a_model_of_something_else_is_refused_in_one_line(changes: dict[str, Any], env: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        evaluate_path_policy(make_model(**changes), env, {}, 2)
    assert "\n" not in str(error.value)


def test_unknown_halting_and_no_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="halting=halt: no such halting; did you mean halt_only"):
        PathActor(make_model(), 2, halting="halt")
    with pytest.raises(ValueError, match="segments=0"):
        PathActor(make_model(), 0)
