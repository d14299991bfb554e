"""Environments in several processes: what they return is what one process returns, and they end with it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from hrm_agent import learn, train
from hrm_agent.environments import workers as module
from hrm_agent.environments.checked import EnvironmentFailed, episode_limit, own_traceback
from hrm_agent.environments.make import choose_env_workers, make_labelled_vector_env, make_vector_env
from hrm_agent.environments.workers import WorkersVectorEnv, choose_workers, seconds_of_step
from hrm_agent.evaluation.episodes import RandomActor, run_in_threads
from hrm_agent.parallel.threads import Threads
from tiny import make_trainer
from worlds import LEARNED, SMALL_CORE

pytestmark = pytest.mark.skipif(not module.FORKS, reason="processes are started by fork")
ENV = "Counting-v0"


class Counting(gym.Env):
    """Episodes of random lengths; observations, rewards and infos depend on everything that is drawn."""

    observation_space = gym.spaces.Dict(
        {"drawn": gym.spaces.Box(-9, 9, (2,), np.float32), "step": gym.spaces.Discrete(100)}
    )
    action_space = gym.spaces.Discrete(3)

    def __init__(self, fails: str = "", at: int = 3, sleep: float = 0.0) -> None:
        self.fails, self.at, self.sleep, self.code = fails, at, sleep, 0
        if fails == "starts":  # a simulator in a process of its own
            started = multiprocessing.get_context("fork").Process(target=os._exit, args=(7,), daemon=True)
            started.start()
            started.join()
            self.code = started.exitcode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {"start": float(self.np_random.random()), "code": self.code}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.sleep:
            time.sleep(self.sleep)
        if self.steps == self.at:
            self._fail()
        ended = bool(self.np_random.random() < 0.3)
        info: dict[str, Any] = {"is_success": ended and action == 1, "name": f"{action}"}
        if self.fails == "info":
            info["function"] = lambda: 0
        return self._observe(), float(action) + self.steps, ended, not ended and self.steps >= 5, info

    def _fail(self) -> None:
        if self.fails == "raise":
            raise IndexError("index 9\nis out of bounds")
        if self.fails == "exit":
            sys.exit("over")
        if self.fails == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails == "memory":
            raise MemoryError("all gone")

    def _observe(self) -> dict[str, Any]:
        return {"drawn": self.np_random.normal(size=2).astype(np.float32).clip(-9, 9), "step": np.int64(self.steps)}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gym.register(ENV, entry_point=f"{__name__}:Counting", reward_threshold=6.0)
    yield
    gym.registry.pop(ENV)


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, where)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        assert len(one) == len(other)
        if one.dtype == object:
            for a, b in zip(one, other, strict=True):
                assert_equal(a, b, where)
        else:
            np.testing.assert_array_equal(one, other, err_msg=where)
    else:
        assert one == other, where


@pytest.mark.parametrize(("env_id", "num_envs", "workers"), [(ENV, 5, 2), (ENV, 3, 8), ("CartPole-v1", 4, 1)])
def test_everything_returned_is_what_one_process_returns(env_id: str, num_envs: int, workers: int) -> None:
    one, other = make_vector_env(env_id, num_envs), make_vector_env(env_id, num_envs, workers=workers)
    assert type(one.unwrapped) is SyncVectorEnv
    assert type(other.unwrapped) is WorkersVectorEnv
    assert other.metadata["autoreset_mode"] == one.metadata["autoreset_mode"]
    assert other.single_observation_space == one.single_observation_space
    assert other.envs[0].spec.reward_threshold == one.envs[0].spec.reward_threshold  # type: ignore[attr-defined]
    random = np.random.default_rng(0)
    with closing(one), closing(other):
        ended = 0
        for seed in (7, None):  # without a seed the generators go on
            assert_equal(one.reset(seed=seed), other.reset(seed=seed))
            for _ in range(40):
                actions = random.integers(one.single_action_space.n, size=num_envs)  # type: ignore[attr-defined]
                results = one.step(actions), other.step(actions)
                assert_equal(*map(_without_times, results))
                ended += "final_obs" in results[1][4]
        assert ended > 5 or env_id != ENV


def _without_times(infos: Any) -> Any:
    """`RecordEpisodeStatistics` says how many seconds an episode took."""
    if isinstance(infos, tuple):
        return tuple(map(_without_times, infos))
    if isinstance(infos, dict):
        return {key: _without_times(value) for key, value in infos.items() if key not in ("t", "_t")}
    return infos


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("raise", r"env=Counting-v0: environment [0-3] failed in step 3 of an episode: IndexError: index 9 is out of"),
        ("exit", r"environment [0-3] failed in step 3 of an episode: SystemExit: over"),
        ("kill", r"the process of environments 0 to 1 has ended \(signal 9\); env_workers=0 steps them in this"),
        ("info", r"what its step returns cannot be sent to another process \(.*use env_workers=0"),
    ],
)
def test_what_fails_in_a_process_is_one_line(fails: str, message: str) -> None:
    env = make_vector_env(ENV, 4, {"fails": fails}, workers=2)
    processes = env.unwrapped._processes  # type: ignore[attr-defined]
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match=message) as raised:
        steps(env, 60)
    assert "\n" not in str(raised.value)
    if fails == "raise":
        cause = raised.value.__cause__
        assert cause is not None
        trace = own_traceback(cause)
        assert "IndexError: index 9" in trace
        assert "test_workers.py" in trace
        assert not {"checked.py", "workers.py", "gymnasium"} & set(re.split(r'[/"]', trace))
    with suppress(EnvironmentFailed):
        env.close()
    assert not any(process.is_alive() for process in processes)


def steps(env: gym.vector.VectorEnv, count: int) -> None:
    for _ in range(count):
        env.step(np.zeros(env.num_envs, int))


def test_environments_may_start_processes_of_their_own() -> None:
    with closing(make_vector_env(ENV, 2, {"fails": "starts"}, workers=2)) as env:
        assert env.reset(seed=0)[1]["code"].tolist() == [7, 7]


def test_a_process_that_may_start_none_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert choose_workers(Counting(sleep=0.001), 4, 2).workers == 0
    with pytest.raises(ValueError, match="env_workers=2: a daemonic process of multiprocessing starts no others"):
        make_vector_env(ENV, 2, workers=2)


def test_memory_that_runs_out_is_said_as_such() -> None:
    with closing(make_vector_env(ENV, 2, {"fails": "memory", "at": 1}, workers=2)) as env:
        env.reset(seed=0)
        with pytest.raises(MemoryError, match="all gone"):
            env.step(np.zeros(2, int))


def test_signals_that_end_a_run_reach_no_environment_and_closing_ends_the_processes() -> None:
    env = make_vector_env(ENV, 4, workers=2)
    processes = env.unwrapped._processes  # type: ignore[attr-defined]
    env.reset(seed=0)
    for process in processes:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
    env.step(np.zeros(4, int))
    env.close()
    env.close()
    assert [process.exitcode for process in processes] == [0, 0]


def test_processes_end_where_the_one_that_started_them_is_killed() -> None:
    reading, writing = os.pipe()
    starter = os.fork()
    if starter == 0:
        with suppress(BaseException):
            envs = [make_vector_env(ENV, 4, workers=2) for _ in range(2)]
            pids = [p.pid for env in envs for p in env.unwrapped._processes]  # type: ignore[attr-defined]
            os.write(writing, " ".join(map(str, pids)).encode())
            time.sleep(60)
        os._exit(1)
    pids = list(map(int, os.read(reading, 1000).split()))
    assert len(pids) == 4
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    deadline = time.monotonic() + 10
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_runs, pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_slow_environments_get_processes_and_others_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEASURED", 0.02)
    slow = choose_env_workers(ENV, 8, {"sleep": 0.002}, cores=4)
    assert slow is not None
    assert slow.workers == 4
    assert re.fullmatch(r"env_workers: 4 \(a step takes [\d.]+ ms\)", slow.line)
    monkeypatch.setattr(module, "SLOW", 1.0)
    quick = choose_env_workers(ENV, 8, {}, cores=4)
    assert quick is not None
    assert quick.workers == 0
    assert quick.line.endswith("processes are worth it from 1e+03 ms)")
    assert choose_workers(Counting(), 1, 4).line == "env_workers: 0 (one environment)"
    assert choose_workers(Counting(), 8, 1).line == "env_workers: 0 (one core)"
    assert choose_env_workers("DynamicMaze-v0", 8, {}, 4) is None  # it steps all at once
    monkeypatch.setattr(module, "FORKS", False)
    assert choose_workers(Counting(), 8, 4).line == "env_workers: 0 (only Linux starts them by fork)"
    with pytest.raises(ValueError, match=r"env_workers=2: works on Linux alone"):
        make_vector_env(ENV, 4, workers=2)


def test_measuring_takes_at_least_a_step_and_not_much_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEASURED", 0.0)
    assert seconds_of_step(Counting(sleep=0.003)) >= 0.003


def test_a_run_is_the_same_with_and_without_and_resumes_with_either(tmp_path: Path) -> None:
    weights = []
    changes: dict[str, Any] = {
        "env": ENV,
        "env_options": {},
        "policy": {"core": "gru", "core_options": {"memory_size": 4}, "readout": "mean"},
    }
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        trainer = make_trainer(folder, env_workers=workers, **changes)
        with closing(trainer.env):
            collected(trainer)
            trainer.save_checkpoint()
        again = make_trainer(folder, env_workers=2 - workers, **changes)
        with closing(again.env):
            again.resume()
            collected(again)
            weights.append({name: t.clone() for name, t in again.policy.state_dict().items()})
    for name, one in weights[0].items():
        assert torch.equal(one, weights[1][name]), name


def collected(trainer: Any) -> None:
    trainer.learner.collect(trainer.collector, 0.0)
    trainer.learner.update(0.0)


@pytest.mark.parametrize(("env_id", "limit"), [(ENV, None), ("CartPole-v1", 500)])
def test_evaluations_are_the_same_with_and_without(env_id: str, limit: int | None) -> None:
    actor = partial(RandomActor, gym.spaces.Discrete(2))
    one, other = (
        run_in_threads(actor, env_id, {}, 7, batch=4, threads=Threads(2), workers=workers) for workers in (0, 3)
    )
    for name in ("seeds", "success", "steps", "returns"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with closing(make_vector_env(env_id, 2, workers=1)) as env:
        assert episode_limit(env, 0) == (limit or 0)


def test_labels_of_imitation_are_kept() -> None:
    env = make_labelled_vector_env("DynamicMaze-v0", 2, {}, workers=2)  # which has a vector implementation
    assert env.reset(seed=0)[1]["optimal_actions"].shape == (2, 4)


def test_a_run_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "available_cores", lambda: 2)
    monkeypatch.setattr(module, "SLOW", 0.0)
    tiny = {"core": SMALL_CORE, **LEARNED, "folder": tmp_path / "run"}
    made, start = [], module._start

    def counted(shares: Any) -> Any:
        made.append(len(shares))
        return start(shares)

    monkeypatch.setattr(module, "_start", counted)
    learn(ENV, **{**tiny, "total_steps": 64})
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("env_workers")]
    assert len(said) == 1
    assert said[0].startswith("env_workers: 2 (a step takes ")
    assert "\nenv_workers: 2\n" in (tmp_path / "run" / "config.yaml").read_text()
    monkeypatch.setattr(train, "choose_env_workers", None)  # it is not measured again
    learn(ENV, **{**tiny, "total_steps": 128}, resume=True, quiet=True)
    assert set(made) == {2}
    assert len(made) == 4  # twice for training, and for its validations
    with pytest.raises(ValueError, match=r"env_workers=-1: expected an integer from 0 to 1,024"):
        learn(ENV, env_workers=-1, quiet=True)
