"""Labels of maze views are the re-planner's paths, found here in another way; scores know every shortest path."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.maze_views import MazeViewsTask, on_any_path
from hrm_envs import Cell, MazeVectorEnv, ReplanPolicy
from hrm_envs.planners import replan

SMALL = {"rows": 3, "cols": 3, "walls": 1, "doors": 2, "p_change": 0.3}
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))

Place = tuple[int, int]


@st.composite
def views(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Any grid with one agent and at most one goal inside a closed ring, likely or not."""
    height, width = draw(st.integers(3, 7)), draw(st.integers(4, 7))
    inside = (height - 2) * (width - 2)
    ids = [Cell.EMPTY, Cell.EMPTY, Cell.EMPTY, Cell.WALL, Cell.DOOR, Cell.UNKNOWN]
    cells = draw(st.lists(st.sampled_from(ids), min_size=inside, max_size=inside))
    agent, goal = draw(st.permutations(range(inside)))[:2]
    cells[agent] = Cell.AGENT
    if draw(st.booleans()):
        cells[goal] = Cell.GOAL
    grid = np.full((height, width), draw(st.sampled_from([Cell.WALL, Cell.UNKNOWN])), np.uint8)
    grid[1:-1, 1:-1] = np.reshape(cells, (height - 2, width - 2))
    return grid


def shortest(grid: NDArray[np.uint8]) -> dict[Place, int]:
    """Steps from every place to the target by the re-planner's rules, by a search that knows dictionaries only."""
    inside = {
        (r, c): int(grid[r, c])
        for r in range(1, grid.shape[0] - 1)
        for c in range(1, grid.shape[1] - 1)
        if grid[r, c] != Cell.WALL
    }
    wanted = Cell.GOAL if Cell.GOAL in inside.values() else Cell.UNKNOWN
    agent = next(place for place, cell in inside.items() if cell == Cell.AGENT)
    steps: dict[Place, int] = {}
    for passable in ({p for p, cell in inside.items() if cell != Cell.DOOR}, set(inside)):
        steps = {place: 0 for place, cell in inside.items() if cell == wanted}
        queue = deque(steps)
        while queue:
            row, col = queue.popleft()
            for down, right in MOVES:
                beside = (row + down, col + right)
                if beside in passable and beside not in steps:
                    steps[beside] = steps[row, col] + 1
                    queue.append(beside)
        if agent in steps:
            break
    return steps


def paths(grid: NDArray[np.uint8], limit: int = 50) -> list[list[Place]]:
    """Shortest paths from the agent, in the order of their first differing move; the agent alone if there is none."""
    steps = shortest(grid)
    row, col = np.argwhere(grid == Cell.AGENT)[0].tolist()
    found: list[list[Place]] = []
    open_paths = [[(row, col)]]
    while open_paths and len(found) < limit:
        path = open_paths.pop()
        row, col = path[-1]
        ahead = [(row + d, col + r) for d, r in MOVES if steps.get((row + d, col + r)) == steps.get((row, col), 0) - 1]
        if not ahead:
            found.append(path)
        open_paths += [[*path, place] for place in reversed(ahead)]
    return found


def mark(grid: NDArray[np.uint8], places: list[Place]) -> NDArray[np.int64]:
    answer = np.zeros(grid.shape, np.int64)
    answer[tuple(np.array(places).T)] = 1
    return answer


@settings(max_examples=200, deadline=None)
@given(views())
def test_paths_are_those_of_an_independent_search_and_begin_as_the_replanner_does(grid: NDArray[np.uint8]) -> None:
    plans, expected = replan(grid[None]), paths(grid)
    np.testing.assert_array_equal(plans.path[0], mark(grid, expected[0]))
    known = shortest(grid)
    assert {(r, c): d for (r, c), d in np.ndenumerate(plans.distances[0]) if d >= 0} == known
    if len(expected[0]) > 1:
        (row, col), (next_row, next_col) = expected[0][:2]
        assert MOVES[ReplanPolicy().act(grid[None])[0]] == (next_row - row, next_col - col)


@settings(max_examples=100, deadline=None)
@given(views())
def test_cells_on_any_path_are_those_of_all_paths(grid: NDArray[np.uint8]) -> None:
    every = paths(grid, limit=10_000)
    expected = mark(grid, [place for path in every for place in path])
    np.testing.assert_array_equal(on_any_path(grid[None], replan(grid[None]))[0], expected)


@pytest.fixture(scope="module")
def task() -> MazeViewsTask:
    return MazeViewsTask(env_options=SMALL, pool=2_000)


def scores(task: MazeViewsTask, grid: NDArray[np.uint8], answer: NDArray) -> dict[str, bool]:
    """Of one view, in a task whose grids are of another size."""
    sized = object.__new__(MazeViewsTask)
    sized._asked = np.zeros(grid.shape, np.bool_)
    sized._asked[1:-1, 1:-1] = True
    sized.spec = type(task.spec)(grid.size, 6, 2, grid=(grid.shape[0], grid.shape[1]))
    examples = sized._examples(grid[None], sized._labels(grid[None]))
    return {name: bool(value[0]) for name, value in sized.score(examples, answer.reshape(1, -1)).items()}


@settings(max_examples=100, deadline=None)
@given(views(), st.data())
def test_every_shortest_path_is_valid_and_nothing_else(grid: NDArray[np.uint8], data: st.DataObject) -> None:
    task = MazeViewsTask(env_options=SMALL, pool=1)
    every = paths(grid)
    chosen = data.draw(st.sampled_from(every))
    found = scores(task, grid, mark(grid, chosen))
    assert found["valid"]
    assert found["action"]
    assert found["exact"] == (chosen == every[0])
    # One cell more, or one less, inside the ring.
    at = (data.draw(st.integers(1, grid.shape[0] - 2)), data.draw(st.integers(1, grid.shape[1] - 2)))
    changed = mark(grid, chosen)
    changed[at] = 1 - changed[at]
    assert not scores(task, grid, changed)["valid"]


def test_actions_are_judged_by_the_first_marked_neighbour_that_is_no_wall(task: MazeViewsTask) -> None:
    grid = np.array(
        [
            [1, 1, 1, 1, 1],
            [1, 0, 0, 0, 1],
            [1, 0, 3, 4, 1],
            [1, 0, 1, 0, 1],
            [1, 1, 1, 1, 1],
        ],
        np.uint8,
    )
    east = (2, 3)
    for others, right in (([], True), ([(3, 2)], True), ([(2, 1)], True), ([(1, 2)], False), ([(0, 0)], True)):
        assert scores(task, grid, mark(grid, [(2, 2), east, *others]))["action"] == right
    assert not scores(task, grid, mark(grid, [(2, 2)]))["action"]


def test_draws_are_a_function_of_the_generator_and_pools_of_the_seed(task: MazeViewsTask) -> None:
    one, same = (task.draw(np.random.default_rng(4), 64) for _ in range(2))
    for a, b in zip(one[:3], same[:3], strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.int32
    again = MazeViewsTask(env_options=SMALL, pool=2_000).draw(np.random.default_rng(4), 64)
    np.testing.assert_array_equal(again.inputs, one.inputs)
    other = MazeViewsTask(env_options=SMALL, pool=2_000, seed=1).draw(np.random.default_rng(4), 64)
    assert (other.inputs != one.inputs).any()
    labels = one.labels.reshape(64, 7, 7)
    ring = np.ones((7, 7), np.bool_)
    ring[1:-1, 1:-1] = False
    assert (labels[:, ring] == IGNORED_LABEL).all()
    assert set(np.unique(labels[:, ~ring])) == {0, 1}


def test_views_come_from_the_split_they_are_for_and_from_off_the_paths() -> None:
    """Where nothing is random and nothing moves, every view is on the shortest path of the first one."""
    still = {"rows": 3, "cols": 3, "walls": 2, "doors": 0}
    for share, elsewhere in ((0.0, False), (0.5, True)):
        task = MazeViewsTask(env_options=still, pool=1_000, random_actions=share)
        env = MazeVectorEnv(256, **still)
        env.reset(seed=int(np.random.default_rng([5, 0]).integers(2**31)))
        starts = env.observe()
        lengths = replan(starts).path.sum((1, 2))
        later = task._pool[256:512]  # four steps on: those of longer episodes are still in their first level
        same = (lengths > 6) & ((later == 1) == (starts == 1)).all((1, 2))
        remaining = replan(later).path.sum((1, 2))[same]
        assert same.sum() > 20
        assert (remaining != lengths[same] - 4).any() == elsewhere
        train = {v.tobytes() for v in task._pool}
        held_out = {
            split: task.examples(split, 200).inputs.reshape(200, 7, 7).astype(np.uint8)
            for split in ("validation", "test")
        }
        assert not any(v.tobytes() in train for views_ in held_out.values() for v in views_)
        assert (held_out["validation"] != held_out["test"]).any()


def test_a_smaller_set_is_the_beginning_of_a_larger_one(task: MazeViewsTask) -> None:
    small, large = task.examples("test", 40), task.examples("test", 300)
    np.testing.assert_array_equal(small.inputs, large.inputs[:40])
    np.testing.assert_array_equal(small.labels, large.labels[:40])
    assert len(task.examples("validation", 0)) == 0


def test_worlds_with_too_few_views_say_how_many_there_are() -> None:
    tiny = MazeViewsTask(env_options={"rows": 1, "cols": 2, "walls": 0, "doors": 0}, pool=500)
    with pytest.raises(ValueError, match=r"^test: 3 views asked for, but of [\d,]+ only 0 are not in the training"):
        tiny.examples("test", 3)
    with pytest.raises(ValueError, match="split='train': expected validation or test"):
        tiny.examples("train", 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": 0}, "pool=0: expected an integer from 1 to"),
        ({"random_actions": 1.5}, "random_actions=1.5: expected a number from 0 to 1"),
        ({"env": "CartPole-v1"}, "env=CartPole-v1: expected a maze"),
        ({"env": "DynamicMaze"}, "did you mean DynamicMaze-v0"),
        ({"env_options": {"row": 3}}, "did you mean 'rows'"),
        ({"pol": 3}, "task.pol=3: no such option of maze_views"),
    ],
)
def test_bad_options_are_one_line(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        build_task("maze_views", options)
    assert "\n" not in str(error.value)
