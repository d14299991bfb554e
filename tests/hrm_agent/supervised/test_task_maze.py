"""Mazes: labels are shortest paths, scores follow the rules, and no set holds a maze of another."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.maze import MazeTask
from hrm_agent.supervised.tasks.maze_rules import GOAL, PATH, START, WALL, dihedral_indices, valid_paths

OPTIONS = [
    {"rows": 4, "cols": 4},
    {"rows": 3, "cols": 5, "loops": 0.6},
    {"rows": 4, "cols": 4, "layout": "scatter"},
    {"rows": 3, "cols": 3, "layout": "four_rooms"},
    {"rows": 5, "cols": 5, "loops": 0.5, "min_path": 12, "unique": True},
]


def steps_to_goal(maze: np.ndarray) -> dict[tuple[int, int], int]:
    """A plain breadth-first search from the goal over int `[H, W]`."""
    goal = tuple(int(v) for v in np.argwhere(maze == GOAL)[0])
    found, queue = {goal: 0}, deque([goal])
    while queue:
        row, col = queue.popleft()
        for there in ((row - 1, col), (row, col + 1), (row + 1, col), (row, col - 1)):
            inside = 0 <= there[0] < maze.shape[0] and 0 <= there[1] < maze.shape[1]
            if inside and maze[there] not in (0, WALL) and there not in found:
                found[there] = found[row, col] + 1
                queue.append(there)
    return found


def shortest_paths(maze: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """The positions strictly between start and goal of every shortest path, by listing them all."""
    found = steps_to_goal(maze)
    start = tuple(int(v) for v in np.argwhere(maze == START)[0])
    if start not in found:
        return set()
    paths = [[start]]
    for distance in range(found[start] - 1, 0, -1):
        paths = [
            [*path, there]
            for path in paths
            for there, steps in found.items()
            if steps == distance and abs(there[0] - path[-1][0]) + abs(there[1] - path[-1][1]) == 1
        ]
    return {frozenset(path[1:]) for path in paths}


def marked(answer: np.ndarray, maze: np.ndarray) -> frozenset[tuple[int, int]]:
    ends = (maze == START) | (maze == GOAL)
    return frozenset((int(r), int(c)) for r, c in np.argwhere((answer == PATH) & ~ends))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_labels_are_the_maze_with_one_of_its_shortest_paths(options: dict) -> None:
    task = MazeTask(**options)
    examples = task.draw(np.random.default_rng(0), 60)
    assert task.score(examples, examples.labels)["valid"].all()
    for inputs, labels in zip(examples.inputs, examples.labels, strict=True):
        maze, label = inputs.reshape(task.spec.grid), labels.reshape(task.spec.grid)
        assert (maze == START).sum() == (maze == GOAL).sum() == 1
        assert (maze[label != maze] == 2).all()
        assert (label[label != maze] == PATH).all()
        paths = shortest_paths(maze)
        assert marked(label, maze) in paths
        assert not options.get("unique") or len(paths) == 1
        assert len(marked(label, maze)) + 1 >= options.get("min_path", 0)


def test_every_shortest_path_is_drawn_about_equally_often() -> None:
    task = MazeTask(rows=3, cols=3, layout="scatter", walls=1, augment=False)
    examples = task.draw(np.random.default_rng(0), 20_000)
    counts: dict[bytes, dict[frozenset, int]] = {}
    for inputs, labels in zip(examples.inputs, examples.labels, strict=True):
        of_maze = counts.setdefault(inputs.tobytes(), {})
        path = marked(labels.reshape(task.spec.grid), inputs.reshape(task.spec.grid))
        of_maze[path] = of_maze.get(path, 0) + 1
    several = 0
    for inputs, found in counts.items():
        paths = shortest_paths(np.frombuffer(inputs, np.int32).reshape(task.spec.grid))
        assert set(found) == paths
        several += len(paths) > 1
        expected = sum(found.values()) / len(paths)
        assert all(abs(n - expected) < 5 * expected**0.5 for n in found.values())
    assert several


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_valid_answers_are_those_of_a_slow_reference(data: st.DataObject) -> None:
    """Any grid, with walls at its border or without, and answers near a right one."""
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 5))
    tokens = data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 2, 2]), min_size=rows * cols, max_size=rows * cols))
    start, goal = data.draw(st.permutations(range(rows * cols)))[:2]
    flat = np.array(tokens, np.int32)
    flat[start], flat[goal] = START, GOAL
    maze = flat.reshape(rows, cols)
    paths = sorted(shortest_paths(maze), key=sorted)
    answer = maze.copy()
    if paths:
        for there in data.draw(st.sampled_from(paths)):
            answer[there] = PATH
    for place in data.draw(st.lists(st.integers(0, rows * cols - 1), max_size=2)):
        answer.flat[place] = data.draw(st.integers(0, 5))
    valid = valid_paths(flat[None], answer.reshape(1, -1), cols)[0]
    assert valid == (marked(answer, maze) in paths)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_images_of_a_puzzle_have_the_image_of_its_answer(seed: int, square: bool) -> None:
    options = {"rows": 3, "cols": 3 if square else 4, "loops": 0.5, "train_puzzles": 3}
    task, plain = MazeTask(**options), MazeTask(**options, augment=False)
    images = dihedral_indices(*task.spec.grid)
    pairs = set()
    for number in range(20):
        single = plain.draw(np.random.default_rng(number), 1)
        pairs |= {(single.inputs[0, i].tobytes(), single.labels[0, i].tobytes()) for i in images}
    drawn = task.draw(np.random.default_rng(seed), 20)
    assert {(i.tobytes(), a.tobytes()) for i, a in zip(drawn.inputs, drawn.labels, strict=True)} <= pairs
    assert task.score(drawn, drawn.labels)["valid"].all()


def test_dihedral_images_are_those_of_numpy() -> None:
    grid = np.arange(25).reshape(5, 5)
    expected = {np.rot90(g, k).tobytes() for g in (grid, grid.T) for k in range(4)}
    assert {grid.ravel()[i].tobytes() for i in dihedral_indices(5, 5)} == expected
    assert len(dihedral_indices(3, 5)) == 4


def canonical(maze: np.ndarray) -> bytes:
    images = [np.rot90(m, k) for m in (maze, maze.T) for k in range(4)]
    return min(image.tobytes() + bytes(image.shape) for image in images)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"cols": 3, "loops": 0.5}, {"cols": 3, "layout": "scatter"}], ids=str)
def test_no_set_holds_a_maze_of_another_nor_its_image(options: dict) -> None:
    """On mazes so small that every one of them is drawn many times."""
    task = MazeTask(rows=2, **options)
    sets = [task.draw(np.random.default_rng(0), 3000), task.examples("validation", 3000), task.examples("test", 3000)]
    found = [{canonical(maze.reshape(task.spec.grid)) for maze in examples.inputs} for examples in sets]
    assert all(found)
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]


def test_everything_is_a_function_of_the_arguments() -> None:
    def task(seed: int) -> MazeTask:
        return MazeTask(rows=4, cols=4, train_puzzles=50, seed=seed)

    one, two = task(0), task(0)
    for a, b in zip(one.draw(np.random.default_rng(5), 40), two.draw(np.random.default_rng(5), 40), strict=True):
        assert np.array_equal(a, b)
    few, others = (one.draw(np.random.default_rng(seed), 9).inputs for seed in (5, 6))
    assert not np.array_equal(few, others)
    # A fixed set is the same whatever was asked before, and whatever the seed; the training set is the seed's.
    few = one.examples("test", 5).inputs
    assert np.array_equal(two.examples("test", 20).inputs[:5], few)
    assert np.array_equal(task(1).examples("test", 5).inputs, few)
    assert not np.array_equal(one.examples("validation", 5).inputs, few)
    assert len({bytes(row) for row in one.draw(np.random.default_rng(0), 2000).inputs}) <= 50 * 8
    mazes = [{canonical(m.reshape(9, 9)) for m in task(s).draw(np.random.default_rng(0), 500).inputs} for s in (0, 1)]
    assert len(mazes[0]) <= 50
    assert mazes[0] != mazes[1]


def test_border_without_labels() -> None:
    task = MazeTask(rows=3, cols=4, label_border=False)
    examples = task.examples("validation", 8)
    ring = np.ones(task.spec.grid, bool)
    ring[1:-1, 1:-1] = False
    assert (examples.labels[:, ring.ravel()] == -100).all()
    assert (examples.labels[:, ~ring.ravel()] > 0).all()
    answers = np.where(examples.labels < 0, 0, examples.labels)
    assert all(values.all() for values in task.score(examples, answers).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows=0"),
        ({"layout": "brade"}, "braid"),
        ({"min_path": -1}, "min_path=-1"),
        ({"rows": 3, "cols": 3, "min_path": 30}, "min_path=30 was not met"),
        ({"rows": 2, "cols": 2, "layout": "scatter", "walls": 0, "min_path": 4, "unique": True}, "unique"),
        ({"rows": 1, "cols": 2}, "too few different"),
        ({"unique": 1}, "unique=1"),
        ({"train_puzzles": 1.5}, "train_puzzles=1.5"),
        ({"colour": 1}, "colour"),
    ],
)
def test_options_that_cannot_be_met_are_one_line(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_task("maze", options)
    assert "\n" not in str(caught.value)


def test_only_validation_and_test_are_fixed_sets() -> None:
    with pytest.raises(ValueError, match="train"):
        MazeTask(rows=3, cols=3).examples("train", 1)
