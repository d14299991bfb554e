"""A state that no environment can be in is refused as a whole; one that is accepted can be played on."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm_envs import CueMazeEnv, CueMazeVectorEnv, MazeEnv, MazeVectorEnv
from hrm_envs.config import SPLITS
from hrm_envs.registration import MAZES
from hrm_envs.rng import level_seeds
from strategies import framed_parameters, maze_parameters

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
State = dict[str, NDArray]
COUNT = 3
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("MazeVectorEnv", {"max_episode_steps": 60, **parameters}) for name, parameters in MAZES.items()},
    "fog and oracle": ("MazeVectorEnv", {"view": 2, "oracle": True, "doors": 8, "p_change": 0.5}),
    "braid": (
        "MazeVectorEnv",
        {"layout": "braid", "loops": 0.5, "door_process": "periodic", "goal_process": "walk", "p_goal": 0.5},
    ),
    "doors one by one": ("MazeVectorEnv", {"door_process": "independent", "max_episode_steps": 5}),
    "two cells": ("MazeVectorEnv", {"rows": 1, "cols": 2, "walls": 0, "doors": 1, "door_process": "independent"}),
    "sizes": (
        "MazeVectorEnv",
        {"layout": "braid", "loops": 0.5, "sizes": [5, 7, 11], "canvas": 13, "oracle": True, "max_episode_steps": 10},
    ),
    "frame": ("MazeVectorEnv", {"rows": 2, "cols": 3, "doors": 1, "endpoints": "anywhere", "view": 2, "canvas": 11}),
    "one of some sizes": ("MazeEnv", {"sizes": [9, 5], "size_schedule": [[0, 1, 0], [3, 1, 2]], "doors": 1}),
    "cue": ("CueMazeVectorEnv", {"length": 3, "max_episode_steps": 9}),
    "one maze": ("MazeEnv", {"p_change": 0.3, "max_episode_steps": 12, "goal_process": "jump", "p_goal": 0.2}),
    "one cue": ("CueMazeEnv", {"length": 2}),
}
COMPILED = {kind.__name__: kind for kind in (CueMazeEnv, CueMazeVectorEnv, MazeEnv, MazeVectorEnv)}
FIELDS = tuple(dict.fromkeys(name for env in (MazeEnv(sizes=[9]), CueMazeEnv()) for name in env.get_state()))


def make(name: str, package: Any = None) -> Any:
    kind, parameters = KINDS[name]
    counted = (COUNT,) if "Vector" in kind else ()
    return (COMPILED[kind] if package is None else getattr(package, kind))(*counted, **parameters)


def step(env: Any, random: np.random.Generator) -> Any:
    return env.step(random.integers(0, 4, COUNT) if hasattr(env, "num_envs") else int(random.integers(4)))


def over(env: Any) -> bool:
    """Of a single environment: it must be reset now."""
    return not hasattr(env, "num_envs") and bool(env.get_state()["done"][0])


def play(env: Any, steps: int, random: np.random.Generator) -> Any:
    """`steps` steps on, or to the end of a single environment's episode."""
    for _ in range(steps):
        if over(env):
            break
        step(env, random)
    return env


def equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    """The package in plain Python, in which an index out of range is an IndexError."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "hrm_envs"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        for name in ours:
            del sys.modules[name]
        package = importlib.import_module("hrm_envs")
        for name in package.__all__:
            getattr(package, name)  # names are imported when they are first used
        for name in [name for name in sys.modules if name.split(".")[0] == "hrm_envs"]:
            del sys.modules[name]
        sys.modules.update(ours)
    assert package.MazeEnv is not MazeEnv
    with np.errstate(over="ignore"):  # the hash of numbers wraps
        yield package


def numbers_near(array: NDArray, env: Any) -> st.SearchStrategy[int]:
    """Numbers at and around the borders of what the array may hold."""
    info = np.iinfo(np.uint8 if array.dtype == np.bool_ else array.dtype)
    height, width = env.config.height, env.config.width
    borders = (0, width, 2 * width, height * width, env.config.max_episode_steps, array.shape[-1], info.min, info.max)
    near = sorted({n + d for n in borders for d in (-1, 0, 1) if info.min <= n + d <= info.max})
    return st.sampled_from(near) | st.integers(int(info.min), int(info.max))


@st.composite
def altered(draw: Any, state: State, env: Any) -> State:
    """A state with one or two arrays changed in a way of many."""
    state = {name: array.copy() for name, array in state.items()}
    for name in draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=2, unique=True)):
        array = state[name]
        how = draw(st.sampled_from(("number", "near", "rows", "order", "dtype", "shape", "kind", "missing")))
        if how in ("number", "near") and array.size:
            at = tuple(draw(st.integers(0, n - 1)) for n in array.shape)
            delta = draw(st.sampled_from((-2, -1, 1, 2)))
            array[at] = draw(numbers_near(array, env)) if how == "number" else (int(array[at]) + delta) & 127
        elif how == "rows":
            array[:] = array[draw(st.permutations(range(len(array))))]
        elif how == "order" and array.ndim > 1:
            array[:] = array[:, draw(st.permutations(range(array.shape[1])))]
        elif how == "dtype":
            other = draw(st.sampled_from(("f8", "f4", "i1", "i8", "u8", "u4", "?", ">i4", "c16", "O", "U9")))
            state[name] = array.astype(other)
        elif how == "shape":
            ways = (array[:-1], array[None], array.ravel(), np.repeat(array, 2, 0), array[..., :0], np.array(0))
            state[name] = draw(st.sampled_from(ways))
        elif how == "kind":
            kinds = (None, "9", float("nan"), [[0], 1], np.full(array.shape, np.nan), {})
            state[name] = draw(st.sampled_from(kinds))
        elif how == "missing":
            del state[name]
    return state


@given(data=st.data(), name=st.sampled_from(sorted(KINDS)), steps=st.integers(0, 14), seed=st.integers(0, 3))
@settings(max_examples=150, **RELAXED)
def test_an_altered_state_is_refused_as_a_whole_or_can_be_played_on(
    data: st.DataObject, name: str, steps: int, seed: int, plain: Any
) -> None:
    random = np.random.default_rng(seed)
    env, played = make(name, plain), make(name)
    played.reset(seed=seed)
    state = play(played, steps, random).get_state()
    env.set_state(state)
    assert equal(env.get_state(), state)
    forged = data.draw(altered(state, played))
    refusal = None
    try:
        env.set_state(forged)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        assert any(field in refusal for field in FIELDS)
        assert equal(env.get_state(), state)
        return
    assert equal(env.get_state(), forged)
    for _ in range(3):
        env.set_state(play(env, 2, random).get_state())


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_state_of_play_is_accepted(name: str) -> None:
    random = np.random.default_rng(0)
    env, other = make(name), make(name)
    for _ in range(3):
        other.set_state(env.get_state())  # at first of an environment that was never reset
        env.reset(seed=None if env.batch.seeded else 0)
        for _ in range(70):
            other.set_state(env.get_state())
            assert equal(other.get_state(), env.get_state())
            if over(env):
                break
            step(env, random)


@given(parameters=maze_parameters(5) | framed_parameters(5), seed=st.integers(0, 2**40), oracle=st.booleans())
@settings(max_examples=12, **RELAXED)
def test_states_of_any_maze_are_accepted(parameters: dict[str, Any], seed: int, oracle: bool) -> None:
    env, other = (MazeVectorEnv(8, **parameters, oracle=oracle) for _ in range(2))
    one, another = (MazeEnv(**parameters, oracle=oracle) for _ in range(2))
    random = np.random.default_rng(seed)
    env.reset(seed=seed)
    one.reset(seed=seed)
    for _ in range(25):
        other.set_state(env.get_state())
        another.set_state(one.get_state())
        assert equal(other.get_state(), env.get_state())
        assert equal(another.get_state(), one.get_state())
        env.step(random.integers(0, 4, 8))
        one.step(int(random.integers(4)))
        if over(one):
            another.set_state(one.get_state())
            one.reset()


WRONG = [
    ("DynamicMaze-v0", "agent", 2**31 - 1, r"state\['agent'\]\[1\] is 2147483647, expected a position inside"),
    ("DynamicMaze-v0", "agent", -1, r"is -1, expected a position inside the border"),
    ("DynamicMaze-v0", "goal", 81, "is 81, expected a cell"),
    ("DynamicMaze-v0", "goal", 11, "is 11, expected a cell"),
    ("DynamicMaze-v0", "doors", 10**6, "is 1000000, expected another open edge for each door"),
    ("DynamicMaze-v0", "doors", -5, "is -5, expected another open edge for each door"),
    ("DynamicMaze-v0", "open_edges", 82, "is 82, expected every edge once"),
    ("DynamicMaze-v0", "open_count", 10**9, "is 1000000000, expected 19 edges without a wall"),
    ("DynamicMaze-v0", "grid", 6, "expected 1: its walls, doors, goal and agent"),
    ("DynamicMaze-v0", "steps", 60, "is 60, expected 0 to 59, or 1 to 60 at an episode's end"),
    ("DynamicMaze-v0", "done", 1, "is 1, expected 0 where episodes begin at once"),
    ("DynamicMaze-v0", "episode", -1, "is -1, expected 0 to 4611686018427387904 after a reset"),
    ("DynamicMaze-v0", "level_seed", 7, "is 7, expected [0-9]+: the level of its seed and episode"),
    ("DynamicFourRooms-v0", "open_edges", 81, "is 81, expected a position of the wall in each arm of the cross"),
    ("braid", "spans", -1, "is -1, expected a span of 10 to 30 steps"),
    ("braid", "open_edges", 0, "expected open edges in increasing order"),
    ("fog and oracle", "shown", 0, "expected 5: the grid around the agent, unknown elsewhere"),
    ("fog and oracle", "distances", 4, "expected -1: steps to the goal"),
    ("sizes", "size", 3, "is 3, expected [012]: the size that its level draws"),
    ("sizes", "corner", 10**6, "is 1000000, expected [0-9]+: the place that its level draws"),
    ("sizes", "agent", 0, "is 0, expected a position inside the border"),
    ("sizes", "steps", 64, "is 64, expected fewer than the limit of its size"),
    ("cue", "agent", 10**7, "is 10000000, expected a position in the corridor"),
    ("cue", "goal", -10**7, "is -10000000, expected the end of an arm, 10 or 22"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value", "message"), WRONG)
def test_the_message_names_field_value_and_what_was_expected(name: str, field: str, value: int, message: str) -> None:
    env = make(name)
    env.reset(seed=0)
    state = env.get_state()
    forged = {**state, field: state[field].copy()}
    forged[field][(1,) + (0,) * (state[field].ndim - 1)] = value
    with pytest.raises(ValueError, match=message) as refusal:
        env.set_state(forged)
    assert "\n" not in str(refusal.value)
    assert equal(env.get_state(), state)


def test_levels_without_compiled_code_are_those_of_the_kernel() -> None:
    for number, split in enumerate(SPLITS):
        env = MazeVectorEnv(50, split=split)
        env.reset(seed=[*range(49), 2**63 - 1])
        env.reset()
        state = env.get_state()
        assert (level_seeds(state["env_seed"], state["episode"], number) == state["level_seed"]).all()


def test_a_maze_of_two_cells_has_one_edge_and_reads_no_other_memory(plain: Any) -> None:
    for package in (None, plain):
        env = make("two cells", package)
        env.reset(seed=0)
        assert env.get_state()["open_edges"].tolist() == [[7]] * COUNT
