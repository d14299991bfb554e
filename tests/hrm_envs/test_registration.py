"""``gymnasium.make``: the environment checker, parameters, time limits, and what is compiled and cached."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numba
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import hrm_envs
from hrm_envs import MazeConfig
from hrm_envs.jit import hot_kernel, is_cached, kernel

IDS = (
    "DynamicMaze-v0",
    "DynamicGoalMaze-v0",
    "DynamicFourRooms-v0",
    "PaperMaze-v0",
    "PaperFourRooms-v0",
    "PaperMaze-v1",
    "PaperFourRooms-v1",
    "CueMaze-v0",
)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
@pytest.mark.filterwarnings("error", "ignore:.*is out of date:DeprecationWarning")
def test_the_environment_checker_reports_nothing(name: str, render_mode: str) -> None:
    env = gymnasium.make(name, render_mode=render_mode)
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert isinstance(env.render(), str if render_mode == "ansi" else np.ndarray)


@pytest.mark.parametrize("name", IDS)
def test_both_ways_to_make_agree(name: str) -> None:
    single = gymnasium.make(name, oracle=True)
    vector = gymnasium.make_vec(name, num_envs=2, vectorization_mode="vector_entry_point", oracle=True)
    assert single.spec.max_episode_steps == vector.config.max_episode_steps
    assert replace(single.unwrapped.config, max_episode_steps=single.spec.max_episode_steps) == vector.config
    assert vector.single_observation_space == single.observation_space
    assert vector.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    observations, infos = vector.reset(seed=3)
    assert observations in vector.observation_space
    assert (single.reset(seed=4)[0] == observations[1]).all()
    assert {"distance", "optimal_actions", "changed", "material"} <= set(infos)


def test_paper_mazes_have_the_sizes_of_the_paper() -> None:
    maze = gymnasium.make_vec("PaperMaze-v0")
    assert maze.single_observation_space.shape == (11, 13)
    assert maze.config == MazeConfig(rows=5, cols=6, walls=10, doors=5, max_episode_steps=80)
    rooms = gymnasium.make_vec("PaperFourRooms-v0")
    assert rooms.single_observation_space.shape == (13, 13)
    assert (rooms.config.doors, rooms.config.p_change) == (1, 0.05)


def truncated_at(env: gymnasium.Env) -> int:
    """Steps until truncation of an episode in which the agent always moves north; -1 if there is none."""
    env.reset(seed=1)  # here that does not lead to the goal
    for step in range(1, 1000):
        *_, terminated, truncated, info = env.step(0)
        assert not terminated
        assert info["is_success"] is False
        if truncated:
            return step
    return -1


@pytest.mark.parametrize(("name", "registered"), [("DynamicMaze-v0", 60), ("PaperMaze-v0", 80)])
@pytest.mark.parametrize("requested", [None, 5, 150])
def test_max_episode_steps_of_make_is_honoured_as_for_any_environment(
    name: str, registered: int, requested: int | None
) -> None:
    given, limit = ({} if requested is None else {"max_episode_steps": requested}), requested or registered
    env = gymnasium.make(name, **given)
    assert gymnasium.spec(name).max_episode_steps == registered
    assert env.spec.max_episode_steps == gymnasium.make(env.spec).spec.max_episode_steps == limit
    assert truncated_at(env) == truncated_at(gymnasium.make(env.spec)) == limit
    vector = gymnasium.make_vec(name, num_envs=2, **given)
    assert vector.config.max_episode_steps == limit
    sync = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync", **given)
    for batch in (vector, sync):
        batch.reset(seed=[1, 1])
        ends = [batch.step(np.zeros(2, np.int64))[3].all() for _ in range(limit)]
        assert ends == [False] * (limit - 1) + [True]
    assert truncated_at(gymnasium.make(name, max_episode_steps=-1)) == -1
    with pytest.raises((ValueError, AssertionError), match="positive"):  # the latter before Gymnasium 1.4
        gymnasium.make(name, max_episode_steps=0)


def test_a_directly_constructed_environment_has_its_own_limit() -> None:
    assert truncated_at(hrm_envs.MazeEnv()) == 60
    assert truncated_at(hrm_envs.MazeEnv(max_episode_steps=7)) == 7
    spec = gymnasium.envs.registration.EnvSpec("Mine-v0", "hrm_envs.maze:MazeEnv", kwargs={"max_episode_steps": 7})
    assert truncated_at(gymnasium.make(spec)) == 7
    assert truncated_at(gymnasium.make(spec, max_episode_steps=3)) == 3


def test_the_bound_of_a_made_environment_ignores_the_wrappers_limit() -> None:
    made, direct = gymnasium.make("DynamicMaze-v0", max_episode_steps=5), hrm_envs.MazeEnv(max_episode_steps=5)
    bounds = []
    for seed in range(30):
        made.reset(seed=seed)
        direct.reset(seed=seed)
        arrival = made.unwrapped.clairvoyant()
        assert direct.clairvoyant() == (arrival if arrival <= 5 else -1)
        bounds.append(arrival)
    assert min(bounds) <= 5 < max(bounds)
    cut_off = gymnasium.make("DynamicMaze-v0", doors=19, p_change=0.0)  # every edge is a wall or a closed door
    cut_off.reset(seed=0)
    assert cut_off.unwrapped.clairvoyant() == -1


def test_gymnasiums_statistics_wrapper_works() -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("DynamicMaze-v0", max_episode_steps=3))
    env.reset(seed=1)
    for _ in range(3):
        *_, info = env.step(0)
    assert info["episode"]["l"] == 3


def test_the_former_name_of_split_is_accepted() -> None:
    assert gymnasium.make("DynamicMaze-v0", seed_band="test").unwrapped.config.split == "test"
    assert hrm_envs.CueMazeVectorEnv(2, seed_band="test").config.split == "test"
    assert hrm_envs.MazeEnv(seed_band="train", split="test").config.split == "test"


def test_registering_twice_changes_nothing() -> None:
    before = gymnasium.registry["DynamicMaze-v0"]
    hrm_envs.register_envs()
    assert gymnasium.registry["DynamicMaze-v0"] is before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"walls": 25}, "walls=25 is not an integer from 0 to 23"),
        ({"walls": 22, "doors": 3}, "walls=22 and doors=3 do not fit on the 24 edges"),
        ({"layout": "braid", "walls": 3}, "walls=3 does not apply to layout='braid'"),
        ({"layout": "four_rooms", "doors": 5}, "doors=5 is more than the 4 places"),
        ({"layout": "brad"}, "did you mean 'braid'"),
        ({"door_process": "rerol"}, "did you mean 'reroll'"),
        ({"goal_process": 3}, "goal_process=3 is not one of"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"p_change": 1.5}, "p_change=1.5 is not a number from 0 to 1"),
        ({"p_change": 10**400}, f"p_change={10**400} is not a number from 0 to 1"),
        ({"p_goal": "x"}, "p_goal='x' is not a number"),
        ({"p_goal": float("nan")}, "p_goal=nan is not a number"),
        ({"view": 0}, "view=0 is not an integer of 1 or more; give 'full' or a radius"),
        ({"view": "ful"}, "view='ful' is not an integer"),
        ({"rows": 0}, "rows=0 is not an integer from 1 to 64"),
        ({"rows": 1, "cols": 1, "walls": 0, "doors": 0}, "give at least two cells"),
        ({"rows": 2.5}, "rows=2.5 is not an integer"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 is not an integer from 1"),
        ({"loops": 0.5}, "loops=0.5 needs layout='braid'"),
        ({"oracle": 1}, "oracle=1 is not a bool"),
        ({"wals": 2}, "did you mean 'walls'"),
        ({"render_mode": "rgb"}, "did you mean 'rgb_array'"),
        ({"num_envs": 0}, "num_envs=0 is not an integer of 1 or more"),
    ],
)
def test_bad_parameters_are_one_line_that_helps(parameters: dict[str, Any], message: str) -> None:
    parameters = {"num_envs": 1, **parameters}
    with pytest.raises(ValueError) as caught:
        hrm_envs.MazeVectorEnv(**parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_floats_are_integers() -> None:
    floats = {"rows": 5.0, "cols": 6.0, "walls": 10.0, "doors": 5.0, "view": 2.0, "max_episode_steps": 8e1}
    config = hrm_envs.MazeConfig(**floats)  # type: ignore[arg-type]
    assert config == hrm_envs.MazeConfig(rows=5, cols=6, walls=10, doors=5, view=2, max_episode_steps=80)
    assert all(type(getattr(config, name)) is int for name in floats)
    cue = hrm_envs.CueConfig(length=3.0, max_episode_steps=1e1)  # type: ignore[arg-type]
    assert (cue.length, cue.max_episode_steps, type(cue.length)) == (3, 10, int)


def test_an_id_needs_the_package_imported_or_named_before_it() -> None:
    """As the documentation says; Gymnasium has loaded no plugins since 1.0, and an entry point would do nothing."""
    code = (
        "import gymnasium\n"
        "try: gymnasium.make('CueMaze-v0')\n"
        "except gymnasium.error.NameNotFound: pass\n"
        "else: raise SystemExit('plugins are loaded')\n"
        "gymnasium.make('hrm_envs:CueMaze-v0'); gymnasium.make('CueMaze-v0')"
    )
    assert run_apart(code).returncode == 0
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert "gymnasium.envs" not in project.get("entry-points", {})


def test_importing_compiles_nothing_and_needs_no_torch() -> None:
    code = (
        "import hrm_envs, sys; assert 'torch' not in sys.modules; assert 'hrm_agent' not in sys.modules;"
        "assert 'numba' not in sys.modules; assert not hasattr(hrm_envs, 'nothing');"
        "assert all(getattr(hrm_envs, name) is not None for name in hrm_envs.__all__);"
        "assert not hrm_envs.kernel.run_batch.overloads"
    )
    assert run_apart(code).returncode == 0


def test_a_kernel_is_cached_until_its_source_changes(tmp_path: Path) -> None:
    (tmp_path / "doubling.py").write_text("def double(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location("doubling", tmp_path / "doubling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fresh = kernel(module.double)
    assert not is_cached(fresh, 2)
    assert fresh(2) == 4
    assert is_cached(fresh, 2)
    assert is_cached(kernel(module.double), 2)  # as in another process: nothing is loaded yet
    assert not is_cached(kernel(module.double), 2.0)
    os.utime(tmp_path / "doubling.py", (0, 0))  # changes the source's stamp
    assert not is_cached(kernel(module.double), 2)
    assert is_cached(module.double, 2)  # plain Python under NUMBA_DISABLE_JIT: nothing will be compiled


# Resets and steps environments of given options; prints of each whether it is compiled and which functions were for it.
COMPILED = """
import sys
import tomllib
import gymnasium, numba.core.event as event
class Recorder(event.Listener):
    names = []
    def on_start(self, given): self.names.append(given.data["dispatcher"].py_func.__name__)
    def on_end(self, given): pass
event.register("numba:compile", Recorder())
for options in sys.argv[1:]:
    env = gymnasium.make_vec("hrm_envs:DynamicMaze-v0", num_envs=2, **eval(options))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    print(env.unwrapped.batch.is_compiled(), *sorted(n for n in Recorder.names if n != "impl"))
    Recorder.names.clear()
"""
COMMON = [
    "_advance_schedule",
    "_choose_walls",
    "_draw_pair",
    "_pick_doors",
    "_protect_path",
    "_record_end",
    "_reroll_doors",
    "_reset_one",
    "_scatter",
    "_set_door",
    "advance_doors",
    "assign",
    "assign",
    "below",
    "draw",
    "draw_level",
    "flood",
    "happens",
    "level_seed",
    "may_change",
    "mix",
    "run_batch",
    "start_doors",
]
ORACLE = ["_begin_oracle", "_update_oracle", "assign", "optimal_actions", "shortest_distances"]
TAKE_ANOTHER_TYPE = ["_record_end", "_reset_one", "run_batch"]  # where there is an oracle


def run_apart(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in another process, with additional environment variables."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.thorough
def test_only_needed_functions_are_compiled_and_once_per_type(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = run_apart(COMPILED, "{}", "{'oracle': True}", **cache)
    plain, judged = (line.split()[1:] for line in done.stdout.splitlines())
    assert plain == COMMON, done.stderr
    assert judged == sorted(ORACLE + TAKE_ANOTHER_TYPE)
    assert run_apart(COMPILED, "{}", **cache).stdout.split() == ["True"]  # from the cache


def test_mazes_of_the_first_version_are_made_without_a_warning() -> None:
    code = "import gymnasium, hrm_envs; gymnasium.make('PaperMaze-v0'); gymnasium.make_vec('PaperFourRooms-v0', 2)"
    done = run_apart(code)
    assert (done.returncode, done.stderr) == (0, "")


# Compiles a kernel as those of the environments are, but a small one.
DOUBLED = """
import sys
import tomllib
sys.path.insert(0, sys.argv[1])
from doubling import double
from hrm_envs.jit import kernel
doubled = kernel(double)
"""


@pytest.fixture
def doubling(tmp_path: Path) -> str:
    """The folder of a module with a function to compile."""
    (tmp_path / "doubling.py").write_text("def double(x):\n    return 2 * x\n")
    return str(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("locators", ["UserProvidedCacheLocator", "UserProvidedCacheLocator,UserWideCacheLocator"])
def test_a_cache_that_cannot_be_written_costs_the_cache_alone(locators: str, doubling: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()  # not a folder, so nothing can be written below it
    nowhere = {name: str(file / "cache") for name in ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME")}
    done = run_apart(DOUBLED + "print(doubled(2))", doubling, NUMBA_CACHE_LOCATOR_CLASSES=locators, **nowhere)
    assert done.stdout.split() == ["4"], done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "compiled anew in every process" in done.stderr


def test_a_cache_that_is_lost_after_import_costs_the_cache_alone(doubling: str, tmp_path: Path) -> None:
    code = (
        "import pathlib, shutil; folder = pathlib.Path(sys.argv[2]); shutil.rmtree(folder);"
        "folder.touch(); print(doubled(2))"
    )
    done = run_apart(DOUBLED + code, doubling, str(tmp_path / "cache"), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stdout.split() == ["4"], done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["DynamicMaze-v0", "CueMaze-v0"])
def test_an_uncompiled_environment_reports_so(name: str, tmp_path: Path) -> None:
    code = (
        f"import gymnasium; env = gymnasium.make_vec('hrm_envs:{name}', num_envs=1); "
        "print(env.unwrapped.batch.is_compiled())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr


def test_cached_code_that_checks_its_bounds_is_loaded_with_numbas_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(x):  # type: ignore[no-untyped-def]
        return x[0]

    assert hot_kernel(first)._cache._loads_bare
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    assert not hot_kernel(first)._cache._loads_bare
