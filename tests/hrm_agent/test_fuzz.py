"""Whatever is typed, read or returned: it is used, or refused in one line, and a refusal writes nothing.

The examples are the same in every run. `pytest -m slow tests/hrm_agent/test_fuzz.py` draws many more. Checkpoints are
altered in `training/test_forged_checkpoints.py`, states of our environments in `tests/hrm_envs`.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from omegaconf import OmegaConf

from hrm_agent import Agent, __version__
from hrm_agent.agents.onnx import export
from hrm_agent.baselines.config import Options
from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluate import evaluate
from hrm_agent.launch import settings as for_train
from hrm_agent.launch import supervised_settings as for_supervise
from hrm_agent.launch.cli import check_jobs, compose_config, open_options, parse_options, usage_errors
from hrm_agent.launch.resume import reopen_run
from hrm_agent.launch.settings import option_defaults, resolve
from hrm_agent.launch.solve import solve
from hrm_agent.launch.sweep_table import sweep_table
from hrm_agent.play import play
from hrm_agent.shifts import shifts
from hrm_agent.tensors.files import load_tensors
from hrm_agent.train import CHANGEABLE, check_run
from hrm_agent.training.tracking import read_metrics
from hrm_agent.watch import watch
from refusals import files
from tiny import ACTIONS, GRID, tiny_policy

pytestmark = pytest.mark.timeout(1800)

# Each is small, or larger than anything that is computed: what is in between only takes long.
INTEGERS = st.sampled_from((-(10**30), -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**12, 10**30))
FLOATS = st.sampled_from((-1.0, 0.0, 0.5, 1.5, 1e300, float("nan"), float("inf"), float("-inf")))
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(("", "abc", "null", "nowhere/x", "..:x", "\x1b[31mred", "\x00", "x" * 5000, "a\nb", "auto")),
)
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
HOSTILE = (
    *("[1]", "{a: 1}", "nan", "inf", "-1", str(10**30), "1e400", "???", "range(3)", "\ud800", "[" + "1," * 4000 + "1]"),
    *("[" * 5000, "{a: " * 400, "&a [*a]", "${x}", "${oc.env:NOT_SET}", "!!python/object/apply:os.getpid []"),
)
YAML = st.text("[]{}(),:&*!|>'\"$= #-.0123456789eaxnul~%@\\\n", max_size=12)
TYPED = st.one_of(TEXTS, YAML, st.sampled_from(HOSTILE))


def few(examples: int, many: int) -> pytest.MarkDecorator:
    """As many examples, and many where slow tests run."""
    return pytest.mark.parametrize("examples", [examples, pytest.param(many, marks=pytest.mark.slow)])


def draw_examples(examples: int, body: Callable[[Any], None]) -> None:
    """Call `body` with hypothesis's `data`, each time with other draws."""
    rules = {"max_examples": examples, "derandomize": True, "deadline": None, "database": None}
    settings(**rules, suppress_health_check=list(HealthCheck))(given(st.data())(body))()


def refusal(action: Callable[[], Any]) -> str | None:
    """The line that a command prints where `action` is refused; None where it is not."""
    said, code = io.StringIO(), 0
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()), usage_errors():
            action()
    except SystemExit as error:
        code = error.code
    line = said.getvalue()
    if not code:
        return None
    assert code == 2
    assert line.startswith("error: ")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) < 10_000
    return line


def places(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies within dictionaries and lists."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*place, key)
        yield from places(value, (*place, key))


def altered(data: Any, values: Any) -> Any:
    """A copy in which one value, or a few, are others, are missing, or have another name."""
    changed = copy.deepcopy(values)
    for _ in range(data.draw(st.integers(1, 3))):
        *outer, last = data.draw(st.sampled_from(list(places(changed)) or [()])) or [None]
        part = changed
        for key in outer:
            part = part[key]
        how = data.draw(st.integers(0, 9))
        if last is None or how == 0:
            return data.draw(VALUES) if last is None else changed
        if how == 1 and isinstance(part, dict):
            part[data.draw(st.text(max_size=5))] = part.pop(last)
        elif how == 2:
            del part[last]
        else:
            part[last] = data.draw(VALUES)
    return changed


def altered_bytes(data: Any, content: bytes) -> bytes:
    """Cut, or with some bytes changed or put in."""
    made = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(made)))
        match data.draw(st.integers(0, 2)):
            case 0:
                del made[at:]
            case 1:
                made[at : at + 1] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                made[at:at] = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"[" * 2000))
    return bytes(made)


@cache
def composed(name: str, choices: tuple[str, ...]) -> dict[str, Any]:
    return resolve(compose_config(list(choices), name))


# What is typed

SMALL = ("core.hidden_size=8", "++env.options={rows: 3, cols: 3, walls: 1, doors: 1}", "threads=1", "kernel=plain")
CHOICES = {
    "train": [("core=trm", *SMALL), ("core=gru", "algo=dqn", *SMALL[:1]), ("core=convlstm", "algo=dagger", *SMALL)],
    "supervise": [("task=maze",), ("task=sudoku", "core=hrm")],
}
TYPES = {"train": for_train.settings, "supervise": for_supervise.settings}


@few(200, 4000)
@pytest.mark.parametrize("name", TYPES)
def test_settings_are_typed_or_refused(name: str, examples: int) -> None:
    refused = set()

    def check(data: Any) -> None:
        values = altered(data, composed(name, data.draw(st.sampled_from(CHOICES[name]))))
        refused.add(refusal(lambda: TYPES[name](values)) is not None)

    draw_examples(examples, check)
    assert refused == {False, True}


@few(20, 600)
def test_a_run_is_built_or_refused(examples: int) -> None:
    """`check_run` is what stands between a command line and the first file."""

    def check(data: Any) -> None:
        values = altered(data, composed("train", data.draw(st.sampled_from(CHOICES["train"]))))
        refusal(lambda: check_run(OmegaConf.create(values)))

    draw_examples(examples, check)


@few(10, 200)
def test_command_lines_are_read_or_refused(examples: int) -> None:
    names = [".".join(map(str, place)) for place in places(composed("train", CHOICES["train"][0]))]
    extra = ["hydra.run.dir", "hydra/launcher", "+x", "~algo", "--config-dir", "-m", "env.options.rows", "task", ""]

    def check(data: Any) -> None:
        given = data.draw(st.lists(st.tuples(st.sampled_from([*names, *extra]), TYPED), min_size=1, max_size=2))
        arguments = open_options([f"{name}={text}" for name, text in given])
        refusal(lambda: check_jobs(arguments, "train", lambda cfg: for_train.settings(resolve(cfg))))

    draw_examples(examples, check)


@few(200, 4000)
def test_options_are_read_or_refused(examples: int) -> None:
    commands, accepted = [evaluate, watch, play, shifts, export, solve, sweep_table, Options], set()

    def check(data: Any) -> None:
        command = data.draw(st.sampled_from(commands))
        names = [*option_defaults(command), "env_options.rows", "settings.width", "which", "x", ""]
        given = data.draw(st.lists(st.tuples(st.sampled_from(names), TYPED), max_size=3))
        accepted.add(
            refusal(lambda: parse_options([f"{name}={text}" for name, text in given], command, "usage")) is None
        )

    draw_examples(examples, check)
    assert accepted == {False, True}


# What is read


@few(50, 1500)
def test_an_agents_files_are_read_or_refused(tmp_path: Path, examples: int) -> None:
    Agent(tiny_policy(), GRID, ACTIONS, {"env": "DynamicMaze-v0", "env_options": {}, "frames": 7}).save(tmp_path)
    saved = files(tmp_path)
    description = json.loads((tmp_path / "agent.json").read_text())
    obs = GRID.sample()

    def check(data: Any) -> None:
        for path, content in saved.items():
            path.write_bytes(content)
        if data.draw(st.booleans()):
            (tmp_path / "agent.json").write_text(json.dumps(altered(data, description)))
        else:
            path = tmp_path / data.draw(st.sampled_from(("agent.json", "agent.safetensors")))
            path.write_bytes(altered_bytes(data, saved[path]))
        before = files(tmp_path)
        refusal(lambda: Agent.load(tmp_path).predict(obs))
        assert files(tmp_path) == before

    draw_examples(examples, check)


@few(50, 1500)
def test_a_runs_files_are_read_or_refused(tmp_path: Path, examples: int) -> None:
    values = composed("train", CHOICES["train"][0])
    described = {"run_version": 1, "hrm_agent": __version__, "command": "python -m hrm_agent.train", "machine": "x"}
    described |= {"python": "3.11.0", "packages": {"torch": "2"}}
    logged = [{"frames": 32, "seconds": 1.5, "success": 0.25}, {"frames": 64, "validation/success": 0.5}]
    texts = {
        "run.json": json.dumps(described),
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(values)),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in logged),
        "eval.json": json.dumps({"success": 0.5}),
    }

    def check(data: Any) -> None:
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        name = data.draw(st.sampled_from(sorted(texts)))
        if data.draw(st.booleans()):
            (tmp_path / name).write_bytes(altered_bytes(data, texts[name].encode()))
        elif name == "config.yaml":
            changed = altered(data, values)
            (tmp_path / name).write_text(json.dumps(changed))  # which is YAML too
        else:
            whole = logged if name == "metrics.jsonl" else json.loads(texts[name])
            changed = altered(data, whole)
            lines = changed if name == "metrics.jsonl" and isinstance(changed, list) else [changed]
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        before = files(tmp_path)
        resumed = partial(reopen_run, command="hrm_agent.train", changeable=CHANGEABLE, settings=for_train.settings)
        refusal(lambda: resumed({"resume": str(tmp_path)}))
        refusal(lambda: sweep_table(str(tmp_path)))
        refusal(lambda: list(read_metrics(tmp_path / "metrics.jsonl", "frames")))
        refusal(lambda: load_tensors(tmp_path / name))
        assert files(tmp_path) == before

    draw_examples(examples, check)


# What is passed and returned

DTYPES = ("uint8", "int8", "int64", "uint64", "float16", "float32", "float64", "bool", "complex64", "U1", "O")
SHAPES = st.sampled_from(((), (0,), (3,), (7, 7), (2, 7, 7), (0, 7, 7), (2, 1, 7, 7), (7, 8), (2, 1, 8), (1, 1, 8)))
NUMBERS = SHAPES.flatmap(
    lambda shape: st.sampled_from(DTYPES).map(lambda dtype: np.full(shape, {"U1": "x", "O": None}.get(dtype, 3), dtype))
)
ARRAYS = NUMBERS | arrays.arrays(np.float32, SHAPES, elements=st.sampled_from((0.0, 1.0, 300.0, -1.0, np.nan, np.inf)))


@few(100, 4000)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_observations_and_states_are_used_or_refused(examples: int) -> None:
    agent = Agent(tiny_policy(), GRID, ACTIONS)
    obs = np.full((2, 7, 7), 3, np.uint8)
    kept = agent.predict(obs)[1]

    def check(data: Any) -> None:
        given = data.draw(st.just(obs) | ARRAYS | VALUES)
        state = data.draw(st.none() | st.just(kept) | st.lists(ARRAYS, max_size=3).map(tuple) | VALUES)
        start = data.draw(st.none() | st.booleans() | ARRAYS | VALUES)
        actions = np.zeros(1)
        with suppress(ValueError):
            actions, _ = agent.predict(given, state, start)
        assert ((actions >= 0) & (actions < 4)).all()

    draw_examples(examples, check)


class Strange(gym.Env):
    """Returns what is drawn, or raises it."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, data: Any = None) -> None:
        self.data = data

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, Any]:
        return self._seen(), self._drawn({})

    def step(self, action: Any) -> tuple[Any, ...]:
        return self._seen(), self._drawn(0.5), self._drawn(False), self._drawn(False), self._drawn({})

    def _seen(self) -> Any:
        return self._drawn(np.zeros(2, np.float32))

    def _drawn(self, right: Any) -> Any:
        """Right, mostly."""
        if self.data.draw(st.integers(0, 7)):
            return right
        if self.data.draw(st.integers(0, 3)) == 0:
            kinds = (ValueError, KeyError, RuntimeError, AssertionError, SystemExit, RecursionError, OSError)
            raise self.data.draw(st.sampled_from(kinds))(self.data.draw(TEXTS))
        return self.data.draw(ARRAYS | VALUES)


gym.register("Strange-v0", entry_point=Strange, disable_env_checker=True)


@few(60, 3000)
@pytest.mark.filterwarnings("ignore")
def test_what_an_environment_returns_is_used_or_names_it(examples: int) -> None:
    def check(data: Any) -> None:
        message = "env=Strange-v0: "
        try:
            env = make_vector_env("Strange-v0", 2, {"data": data})
            env.reset(seed=0)
            for _ in range(4):
                obs, rewards, *_ = env.step(np.zeros(2, np.int64))
                assert np.isfinite(obs).all()
                assert np.isfinite(rewards).all()
                assert torch.from_numpy(obs).dtype == torch.float32
                assert obs.shape == (2, 2)
        except EnvironmentFailed as error:
            message = str(error)
        assert message.startswith("env=Strange-v0: ")
        assert message.isprintable()

    draw_examples(examples, check)
