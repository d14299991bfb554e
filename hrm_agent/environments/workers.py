"""Environments of other packages stepped in several processes, for those whose step is slow.

A few processes step a share of the environments each; Gymnasium's `AsyncVectorEnv` would start one for every
environment. Everything else is left to `SyncVectorEnv`, which is given the results: observations, infos, final
observations and episodes are the same, bit for bit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from hrm_agent.environments.action_masks import has_mask, sample_action
from hrm_agent.environments.checked import EnvironmentFailed, InAnotherProcess, episode_limit, own_traceback

SLOW = 3e-4
"""Seconds of a step from which on processes are worth their messages."""
MEASURED = 0.25
"""Seconds of measuring."""
PATIENCE = 5.0
"""Seconds that a process may take to end before it is killed."""
FORKS = sys.platform.startswith("linux")
"""Elsewhere processes do not begin as copies of this one, which knows how to make the environments."""

Make = Callable[[], gym.Env]


def check_workers(workers: int | None) -> None:
    """Raises: ValueError for processes on another system than Linux, or of one that may start none."""
    if workers and multiprocessing.current_process().daemon:
        raise ValueError(f"env_workers={workers}: a daemonic process of multiprocessing starts no others; use 0")
    if workers and not FORKS:
        raise ValueError(f"env_workers={workers}: works on Linux alone, where processes are started by fork; use 0")


class Chosen(NamedTuple):
    """How many processes, 0 for none, and why in one line."""

    workers: int
    line: str


def choose_workers(env: gym.Env, num_envs: int, cores: int) -> Chosen:
    """Measure a few random steps of an environment, which is reset before; at least one, and resets among them.

    Args:
        env: a single one, as it is stepped in training.
        num_envs: of the vector.
        cores: that processes can run on.
    """
    if min(num_envs, cores) < 2 or not FORKS:
        why = "one environment" if num_envs < 2 else "one core" if cores < 2 else "only Linux starts them by fork"
        return Chosen(0, f"env_workers: 0 ({why})")
    if multiprocessing.current_process().daemon:
        return Chosen(0, "env_workers: 0 (a daemonic process starts no others)")
    seconds = seconds_of_step(env)
    what = f"a step takes {seconds * 1000:.2g} ms"
    if seconds < SLOW:
        return Chosen(0, f"env_workers: 0 ({what}; processes are worth it from {SLOW * 1000:.2g} ms)")
    workers = min(num_envs, cores)
    return Chosen(workers, f"env_workers: {workers} ({what})")


def seconds_of_step(env: gym.Env) -> float:
    """Mean seconds of a random step, with the resets between episodes, of at most `MEASURED` seconds' steps."""
    env.action_space.seed(0)
    masked = has_mask(env.observation_space)
    obs, ended = _step(env, env.reset(seed=0)[0], masked)  # the first may compile something
    began, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - began < MEASURED:
        if ended:
            obs = env.reset()[0]
        obs, ended = _step(env, obs, masked)
        steps += 1
    return (time.perf_counter() - began) / steps


def _step(env: gym.Env, obs: Any, masked: bool) -> tuple[Any, bool]:
    """A random legal step: the observation after it, and whether it ended the episode."""
    obs, _, terminated, truncated, _ = env.step(sample_action(env.action_space, obs, masked))
    return obs, bool(terminated or truncated)


class _Remote(gym.Env):
    """Stands for an environment of another process: gives `SyncVectorEnv` what that one has returned."""

    def __init__(self, like: gym.Env) -> None:
        self.observation_space, self.action_space = like.observation_space, like.action_space
        self.metadata, self.render_mode, self.spec = like.metadata, like.render_mode, like.spec
        self._max_episode_steps = episode_limit(like, 0) or None
        self.stepped: Any = None
        self.was_reset: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given: tuple[Any, dict[str, Any]] = self.was_reset
        return given

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        given: tuple[Any, Any, bool, bool, dict[str, Any]] = self.stepped
        return given

    def close(self) -> None:
        pass


class WorkersVectorEnv(SyncVectorEnv):
    """A `SyncVectorEnv` in SAME_STEP autoreset mode whose environments live in `workers` processes.

    Ctrl-C and the signals that end a run are ignored by the processes: a run stops after its update, and closes them.
    They end by themselves where this process is killed.

    Args:
        makes: what makes each environment; the first is also called here, for its spaces.
        workers: 1 or more.
        env_id: for messages.

    Raises:
        ValueError: on another system than Linux.
        EnvironmentFailed: by every method, from an exception in an environment; or a process has ended.
    """

    _end: Finalize | None = None  # Gymnasium closes what was not built too

    def __init__(self, makes: Sequence[Make], workers: int, env_id: str) -> None:
        check_workers(workers)
        example = makes[0]()
        remotes = [_Remote(example) for _ in makes]
        example.close()
        super().__init__([lambda r=remote: r for remote in remotes], autoreset_mode=AutoresetMode.SAME_STEP)  # type: ignore[misc]
        self._remotes, self._env_id = remotes, env_id
        self._shares = [
            list(map(int, part)) for part in np.array_split(np.arange(len(makes)), min(workers, len(makes)))
        ]
        self._pipes, self._processes = _start([[makes[i] for i in share] for share in self._shares])
        self._end = Finalize(self, _end, (self._pipes, self._processes), exitpriority=10)
        try:
            self._ask([("make", None)] * len(self._shares))
        except BaseException:
            self._end()
            raise

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if np.ndim(seed) == 0 else list(seed)
        answers = self._ask([("reset", [(seeds[i], options) for i in share]) for share in self._shares])
        for remote, result in zip(self._remotes, answers, strict=True):
            remote.was_reset = result
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        each = list(iterate(self.action_space, actions))
        answers = self._ask([("step", [each[i] for i in share]) for share in self._shares])
        for remote, (stepped, was_reset) in zip(self._remotes, answers, strict=True):
            remote.stepped, remote.was_reset = stepped, was_reset
        return super().step(actions)

    def close_extras(self, **kwargs: Any) -> None:
        if self._end is not None and self._end.still_active():
            try:
                self._ask([("close", None)] * len(self._shares))
            finally:
                self._end()

    def _ask(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        """Send a request to each process, wait for all, and join the answers in the order of the environments."""
        for number, (pipe, request) in enumerate(zip(self._pipes, requests, strict=True)):
            with self._watching(number):
                pipe.send(request)
        answers: list[Any] = []
        failures = []
        for number, pipe in enumerate(self._pipes):
            with self._watching(number):
                answer, failure = pipe.recv()
            answers += answer or []
            failures += [] if failure is None else [failure]
        if failures:
            kind, message, trace = failures[0]
            if kind == "MemoryError":
                raise MemoryError(message)
            raise EnvironmentFailed(message) from (InAnotherProcess(trace) if trace else None)
        return answers

    def _watching(self, number: int) -> _Watching:
        first, last = self._shares[number][0], self._shares[number][-1]
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        return _Watching(self._processes[number], f"env={self._env_id}: the process of {which} has ended")


class _Watching:
    """Turn a broken pipe into one line."""

    def __init__(self, process: Any, line: str) -> None:
        self.process, self.line = process, line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, EOFError | ConnectionError | OSError):
            self.process.join(PATIENCE)
            code = self.process.exitcode
            how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
            raise EnvironmentFailed(f"{self.line}{how}; env_workers=0 steps them in this process") from None


def _start(shares: Sequence[Sequence[Make]]) -> tuple[list[Any], list[Any]]:
    context = multiprocessing.get_context("fork")
    pipes: list[Any] = []
    processes = []
    with warnings.catch_warnings():
        # Python 3.12 warns of every thread. The processes use nothing that the threads of this one could have locked.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        for makes in shares:
            here, there = context.Pipe()
            # No daemon: an environment may start processes of its own.
            process = context.Process(target=_work, args=(makes, there, [*pipes, here]), daemon=False)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
    return pipes, processes


def _end(pipes: Sequence[Any], processes: Sequence[Any]) -> None:
    """End the processes: those that wait see the end of their pipe."""
    for pipe in pipes:
        pipe.close()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(makes: Sequence[Make], pipe: Any, others: Sequence[Any]) -> None:
    """Of a process: make its environments and answer requests until the pipe ends.

    Args:
        others: ends of pipes that this copy must not hold open.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for other in others:
        other.close()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # OpenMP's threads are not there after a fork
    envs: list[gym.Env] = []
    command = ""
    with suppress(EOFError, OSError):
        while command != "close":
            command, data = pipe.recv()
            _answer(pipe, envs, makes, command, data)
    if command != "close":  # the other process is gone
        for env in envs:
            with suppress(Exception):
                env.close()
    for started in multiprocessing.active_children():  # by an environment, which did not end it
        if started.daemon:
            started.terminate()
    os._exit(0)  # without what this process has registered to do at its exit


def _answer(pipe: Any, envs: list[gym.Env], makes: Sequence[Make], command: str, data: Any) -> None:
    try:
        answer = None
        if command == "make":
            envs += [make() for make in makes]
        elif command == "reset":
            answer = [env.reset(seed=seed, options=options) for env, (seed, options) in zip(envs, data, strict=True)]
        elif command == "step":
            answer = [_step_once(env, action) for env, action in zip(envs, data, strict=True)]
        else:
            for env in envs:
                env.close()
        failure = None
    except (Exception, SystemExit) as error:
        answer, failure = None, _describe(error)
    try:
        pipe.send((answer, failure))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # a pickle cannot hold it
        what = f"what its {command} returns cannot be sent to another process"
        text = f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); use env_workers=0"
        pipe.send((None, ("EnvironmentFailed", text, "")))


def _step_once(env: gym.Env, action: Any) -> tuple[Any, Any]:
    """What a step returns, and what the reset after an episode's end does."""
    stepped = env.step(action)
    return stepped, env.reset() if stepped[2] or stepped[3] else None


def _describe(error: BaseException) -> tuple[str, str, str]:
    """Kind, message and the environment's own traceback of an exception."""
    cause = error.__cause__ if isinstance(error, EnvironmentFailed) else error
    return type(error).__name__, str(error), "" if cause is None else own_traceback(cause)
