"""Train one baseline with our clock, log and evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from hrm_agent.baselines.actor import SB3Actor, count_parameters, has_distribution, measure_cost
from hrm_agent.baselines.agents import build_model, layout_of
from hrm_agent.baselines.config import RunConfig
from hrm_agent.baselines.vec_env import SB3VecEnv
from hrm_agent.environments.action_masks import IGNORE, SETTING, has_mask
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import Actor, run_in_threads
from hrm_agent.evaluation.report import BATCH, Levels, compare, summarize
from hrm_agent.experience.collector import RECENT_EPISODES
from hrm_agent.training.tracking import CLOCKS, RunLog


class Clock:
    """Seconds since it was made, without those spent in `paused`; `kind` is one of `CLOCKS`."""

    def __init__(self, kind: str) -> None:
        self._now = CLOCKS[kind]
        self._began = self._now()

    @property
    def seconds(self) -> float:
        return self._now() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = self._now()
        try:
            yield
        finally:
            self._began += self._now() - began


class BaselineRun:
    """A model with what is needed to train and evaluate it. Nothing is written before `train`.

    Attributes:
        frames, seconds: of training so far.
        env_options: of its environments; masks of legal actions are not used.
        validation: of the last evaluation on validation levels, greedy.
        validation_sampled: of the same levels with actions drawn, at the end of training; None where there is no
            distribution.

    Raises:
        ValueError: settings that do not fit each other or the environment.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.env_options = config.env_options
        env = make_vector_env(config.env, config.settings.num_envs, self.env_options)
        if has_mask(env.single_observation_space):  # which Stable-Baselines3's algorithms do not know
            env.close()
            self.env_options = {**config.env_options, SETTING: IGNORE}
            env = make_vector_env(config.env, config.settings.num_envs, self.env_options)
        self.venv = SB3VecEnv(env, layout_of(config.settings))
        self.model = build_model(config.baseline, config.settings, self.venv, config.seed)
        self.seconds = 0.0
        self.validation: dict[str, Any] = {}
        self.validation_sampled: dict[str, Any] | None = None
        self.sampled: dict[str, float] = {}

    @property
    def frames(self) -> int:
        return self.model.num_timesteps

    def train(self, folder: Path) -> None:
        """Train to the end; write `metrics.jsonl`, TensorBoard's events and `model.zip` into `folder`.

        Raises:
            ValueError: from Stable-Baselines3, where numbers become non-finite.
        """
        log = RunLog(folder, 0)
        try:
            recorder = _Recorder(self, log)
            # The library's schedules follow this number: they end with whichever limit is nearer.
            self.model._update_current_progress_remaining = recorder.update_progress  # type: ignore
            self.model.learn(self.config.total_steps, callback=recorder, log_interval=10**9)
            self.seconds = recorder.clock.seconds
            recorder.log_progress()
            # Before the validation: whatever that meets, the training is kept.
            self.model.save(folder / "model.zip", exclude=["_update_current_progress_remaining"])
            self.validate(log)
            if has_distribution(self.model):
                self.validation_sampled = self._play_validation(deterministic=False)
        finally:
            log.close()

    def validate(self, log: RunLog) -> None:
        """Greedy success on validation levels, into the log."""
        self.validation = self._play_validation()
        log.scalars(self.frames, validation=self.validation)

    def _play_validation(self, deterministic: bool = True) -> dict[str, Any]:
        c = self.config
        make, levels = partial(self.actor, deterministic), (c.env, self.env_options, c.eval_episodes)
        return summarize(run_in_threads(make, *levels, split="validation", oracle=False))

    def actor(self, deterministic: bool = True) -> Actor:
        return SB3Actor(self.model, self.venv.view, self.venv.first_action, deterministic)

    def evaluate(self) -> dict[str, Any]:
        """The record of `hrm_agent.evaluate` on test levels, for this model: the same levels, metrics and fields."""
        c = self.config
        levels = Levels(c.env, self.env_options, c.test_episodes)
        sampled = partial(self.actor, deterministic=False) if has_distribution(self.model) else None
        cost = lambda _: measure_cost(self.model, self.venv.view, BATCH)  # noqa: E731
        played = compare(self.actor, levels, cost, {"sampled": sampled})
        return {"agent": c.baseline, **played, **self.describe()}

    def describe(self) -> dict[str, Any]:
        """What was trained, and for how long."""
        return {
            "settings": dict(vars(self.config.settings)),
            "parameters": count_parameters(self.model),
            "frames": self.frames,
            "seconds": round(self.seconds, 1),
            "clock": self.config.clock,
            "training_seed": self.config.seed,
            "validation": self.validation,
            "validation_sampled": self.validation_sampled,
            "sampled_success": self.sampled.get("success"),
        }


class _Recorder(BaseCallback):
    """Logs, evaluates, and ends the run at its time limit."""

    def __init__(self, run: BaselineRun, log: RunLog) -> None:
        super().__init__()
        self.run, self.log, self.clock = run, log, Clock(run.config.clock)
        self.episodes: deque[tuple[float, int, bool]] = deque(maxlen=RECENT_EPISODES)  # return, length, success

    def _on_training_start(self) -> None:
        self.clock = Clock(self.run.config.clock)  # without what is compiled or filled before the first frame

    def _on_step(self) -> bool:
        c, now = self.run.config, self.num_timesteps
        before = now - self.run.venv.num_envs
        infos = self.locals["infos"]
        for i in np.flatnonzero(self.locals["dones"]):
            episode = infos[i].get("episode")
            if episode is not None:
                self.episodes.append((episode["r"], episode["l"], infos[i]["is_success"]))
        if now // c.log_every > before // c.log_every:
            self.log_progress()
        if c.eval_every and now // c.eval_every > before // c.eval_every:
            with self.clock.paused():
                self.run.validate(self.log)
        return not c.max_seconds or self.clock.seconds < c.max_seconds

    def log_progress(self) -> None:
        """Means over the last `RECENT_EPISODES` episodes of training, as in `Collector.statistics`."""
        self.run.seconds = self.clock.seconds
        frames = self.run.frames
        progress = {"seconds": self.run.seconds, "frames_per_second": frames / self.run.seconds}
        if len(self.episodes) >= min(self.run.venv.num_envs, RECENT_EPISODES):
            means = (float(np.mean(column)) for column in zip(*self.episodes, strict=True))
            self.run.sampled = dict(zip(("return", "length", "success"), means, strict=True))
        self.log.scalars(frames, train={**self.run.sampled, **progress})

    def update_progress(self, num_timesteps: int, total_timesteps: int) -> None:
        """Stable-Baselines3's remaining share of the run, by time as well as by frames."""
        c = self.run.config
        by_time = self.clock.seconds / c.max_seconds if c.max_seconds else 0.0
        self.model._current_progress_remaining = max(0.0, 1.0 - max(num_timesteps / c.total_steps, by_time))
