"""The training loop: collect, update, evaluate, log, checkpoint.

Everything that the next update depends on is in a checkpoint, and a checkpoint is taken between updates; so a run
that was killed and resumed ends with the same weights, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hrm_agent import __version__
from hrm_agent.agent import Agent
from hrm_agent.algos.ppo import NonFiniteLoss
from hrm_agent.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    flatten,
    load_tensors,
    unflatten,
)
from hrm_agent.collector import Collector
from hrm_agent.environments import is_compiled
from hrm_agent.evaluation.report import evaluate_policy
from hrm_agent.evaluation.video import encode_gif, record_episodes
from hrm_agent.initial_weights import freeze, initialise, parse_parts
from hrm_agent.learners import AlgoConfig, build_env, build_learner
from hrm_agent.parallel import Shards
from hrm_agent.policy import NonFiniteNumbers, Policy, PolicyConfig
from hrm_agent.tracking import CLOCKS, Console, RunLog

CHECKPOINTS = "checkpoints"
VIDEO_EPISODES = 2
VIDEO_FPS = 8
COMPILES = "compiling the environments (first run on this machine: about a minute)"


@dataclass(frozen=True)
class TrainerConfig:
    """A run's own settings, beside the policy's and the algorithm's.

    Args:
        env, env_options: Gymnasium id and keyword arguments.
        seed: of weights, environments, actions and minibatches.
        total_steps: environment frames; rounded up to whole rollouts.
        max_seconds: of training, evaluation and checkpoints not counted, after which the run ends although frames
            are left; 0: no limit. What is annealed reaches its end with whichever limit is nearer. Such a run
            depends on the speed of the machine and cannot be repeated exactly.
        clock: what all seconds of training are counted by: `wall`, or `cpu`, processor time of the whole process
            (on a machine with other work on it, one shard's seconds on a core of its own).
        checkpoint_every: frames between checkpoints; 0: only at the beginning and at the end.
        keep_checkpoints: how many are kept.
        eval_every, eval_episodes: greedy evaluation on validation levels, every so many frames (0: only at the end).
        video_every: frames between videos in TensorBoard; 0: only at the end.
        log_every: frames between lines of the log.
        shards: threads that share the batch.
        device: `cpu`, or a CUDA device.
        init_from: agent, run or supervised model, whose weights the run starts from (`initial_weights.initialise`); not
            looked at where there is a checkpoint to go on from.
        init_parts: of them, `encoder`, `core`, `carry`, `heads`, separated by commas, or `all`.
        freeze: likewise, the parts that are not trained.
    """

    env: str
    env_options: dict[str, Any]
    seed: int
    total_steps: int
    checkpoint_every: int
    keep_checkpoints: int
    eval_every: int
    eval_episodes: int
    video_every: int
    log_every: int
    shards: int
    device: str
    max_seconds: float = 0.0
    clock: str = "wall"
    init_from: str | None = None
    init_parts: str = "core,encoder"
    freeze: str = ""

    def __post_init__(self) -> None:
        for name in ("total_steps", "keep_checkpoints", "eval_episodes", "log_every", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        for name in ("seed", "checkpoint_every", "eval_every", "video_every", "max_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        parse_parts(self.freeze, "freeze")
        if not parse_parts(self.init_parts, "init_parts"):
            raise ValueError(f"init_parts={self.init_parts}: expected at least one part of a policy, or all")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock={self.clock}: expected {' or '.join(CLOCKS)}")
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = ""
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device}: expected cpu, cuda or cuda:N")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device}: torch {torch.__version__} sees no CUDA device; use device=cpu")


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint has been written."""


def prepare(policy: Policy, config: TrainerConfig, fresh: bool) -> None:
    """Give a new policy the weights that the run starts from, and freeze what is not trained.

    Args:
        fresh: the run begins; False: it is resumed, and its weights come from a checkpoint.

    Raises:
        ValueError: weights that do not fit, or nothing left to train.
    """
    if fresh and config.init_from:
        initialise(policy, config.init_from, parse_parts(config.init_parts, "init_parts"))
    freeze(policy, parse_parts(config.freeze, "freeze"))


class Trainer:
    """Args:
    config, policy_config, algo_config: see their classes.
    folder: of the run; checkpoints, agents and logs go there.
    console: told before the environments are compiled, which is silent and long; None: nobody is.

    Raises:
        ValueError: settings that do not fit each other or the environment. Nothing has been written then.
    """

    def __init__(
        self,
        config: TrainerConfig,
        policy_config: PolicyConfig,
        algo_config: AlgoConfig,
        folder: Path,
        console: Console | None = None,
    ) -> None:
        self.config, self.folder = config, folder
        self.now = CLOCKS[config.clock]
        self.shards = Shards(config.shards)
        self.env = build_env(algo_config, config.env, algo_config.num_envs, config.env_options)
        if console is not None and not is_compiled(self.env):
            console.say(COMPILES)
        torch.manual_seed(config.seed)
        space = self.env.single_observation_space
        self.checkpoints = CheckpointFolder(folder / CHECKPOINTS, config.keep_checkpoints)
        policy = Policy(policy_config, space, self.env.single_action_space)
        prepare(policy, config, fresh=self.checkpoints.latest() is None)
        self.policy = policy.to(config.device)
        self.collector = Collector(self.env, self.policy, config.seed, self.shards)
        self.learner = build_learner(self.policy, algo_config, space, self.collector, self.shards, config.seed)
        self.algo = self.learner.algo
        self.updates = 0
        self.seconds = 0.0  # of training, resumed parts included
        self.best = (-1.0, 0.0)  # success and return on validation levels
        self.validation: dict[str, Any] = {}
        self._stop = False

    @property
    def frames(self) -> int:
        return self.collector.frames

    @property
    def done(self) -> float:
        """How much of the run is over, 0 to 1."""
        limit = self.config.max_seconds
        return min(1.0, max(self.frames / self.config.total_steps, self.seconds / limit if limit else 0.0))

    def run(self, console: Console) -> None:
        """Train to the end.

        Raises:
            NonFiniteLoss: with the checkpoint to go back to in its message.
            Interrupted: after Ctrl-C or SIGTERM.
        """
        log = RunLog(self.folder, self.frames)
        previous = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self.checkpoints.latest() is None:
                self.save_checkpoint()  # so that there is always one to go back to, and a full disk shows at once
            with console.training(self.config.total_steps, self.frames):
                while self.done < 1.0:
                    self._iterate(log, console)
                    if self._stop:
                        path = self.save_checkpoint()
                        raise Interrupted(f"stopped at {self.frames:,} frames; checkpoint {path}")
            self._finish(log, console)
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)
            log.close()

    def _iterate(self, log: RunLog, console: Console) -> None:
        before, done, began = self.frames, self.done, self.now()
        with self._naming_checkpoint():
            self.learner.collect(self.collector, done)
        collected = self.now()
        with self._naming_checkpoint():
            losses = self.learner.update(done)
        updated = self.now()
        self.updates += 1
        self.seconds += updated - began
        progress = {
            **self.collector.statistics(),
            **self.learner.statistics(),
            "frames_per_second": self.frames / self.seconds,
        }
        if self._due(self.config.log_every, before):
            speed = {"collect_seconds": collected - began, "update_seconds": updated - collected}
            log.scalars(self.frames, train=progress, loss=losses, time=speed)
        if self._due(self.config.eval_every, before):
            self._validate(log)
        if self._due(self.config.video_every, before):
            self._film(log, console)
        if self._due(self.config.checkpoint_every, before):
            self.save_checkpoint()
        console.progress(self.frames, {**progress, "validation": self.validation.get("success")})

    @contextmanager
    def _naming_checkpoint(self) -> Iterator[None]:
        """Say where to go back to, should the numbers stop being numbers."""
        try:
            yield
        except NonFiniteNumbers as error:
            last = self.checkpoints.latest()
            where = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
            raise NonFiniteLoss(f"{error} at {self.frames:,} frames; {where}; try a lower learning rate") from None

    def _due(self, every: int, before: int) -> bool:
        """True once in every `every` frames."""
        return every > 0 and self.frames // every > before // every

    def _validate(self, log: RunLog) -> None:
        c = self.config
        self.validation = evaluate_policy(
            self.policy, c.env, c.env_options, c.eval_episodes, band="validation", shards=self.shards
        )
        log.scalars(self.frames, validation=self.validation)
        reached = (self.validation["success"], self.validation["return"])
        if reached >= self.best:  # of equals the later, which has seen more
            self.best = reached
            self.agent().save(self.folder / "agents" / "best")

    def _film(self, log: RunLog, console: Console) -> None:
        try:
            frames = record_episodes(
                self.policy, self.config.env, self.config.env_options, VIDEO_EPISODES, seed=0, band="validation"
            )
        except Exception as error:  # foreign code draws it, and no film is worth a run
            console.say(f"no film of this run: {' '.join(str(error).split()) or type(error).__name__}")
            return
        log.video(self.frames, "validation/episodes", encode_gif(frames, VIDEO_FPS), frames[0].shape)

    def _finish(self, log: RunLog, console: Console) -> None:
        self._validate(log)
        self.agent().save(self.folder / "agents" / "last")
        self.save_checkpoint()
        self._film(log, console)
        log.hyperparameters(self._settings(), {"validation/success": self.validation["success"]})

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._stop = True

    def _settings(self) -> dict[str, Any]:
        return {
            **{k: v for k, v in asdict(self.config).items() if not isinstance(v, dict)},
            **{k: v for k, v in self.policy.config.to_dict().items() if not isinstance(v, dict)},
            **asdict(self.algo.config),
        }

    def agent(self) -> Agent:
        """The policy as it is now, as an agent that tells where it comes from."""
        c, p = self.config, self.policy.config
        info = {
            "env": c.env,
            "env_options": c.env_options,
            "algo": self.learner.name,
            "core": p.core,
            "carry": p.carry,
            "segments": p.segments,
            "time_gradient": p.time_gradient,
            "seed": c.seed,
            "frames": self.frames,
            **self.learner.statistics(),
            "seconds": round(self.seconds, 1),
            "clock": c.clock,
            "parameters": sum(x.numel() for x in self.policy.parameters()),
            "validation": self.validation,
            "hrm_agent_version": __version__,
        }
        space, actions = self.env.single_observation_space, self.env.single_action_space
        agent = Agent(self.policy, space, actions, info)
        self.policy.train()
        return agent

    def save_checkpoint(self) -> Path:
        """Write everything needed to go on as if nothing had happened."""
        tensors = {
            **flatten("policy", self.policy.state_dict()),
            **self.learner.tensors(),
            **flatten("collector", self.collector.tensors()),
        }
        metadata = {
            "kind": "checkpoint",
            "hrm_agent_version": __version__,
            "updates": self.updates,
            "seconds": self.seconds,
            "best": self.best,
            "validation": self.validation,
            "collector": self.collector.metadata(),
            "learner": self.learner.metadata(),
        }
        return self.checkpoints.save(self.frames, tensors, metadata)

    def load_checkpoint(self, path: Path) -> None:
        """Go back to where `save_checkpoint` was called.

        Raises:
            CheckpointError: the file is damaged or belongs to other settings.
        """
        tensors, metadata = load_tensors(path)
        try:
            self.policy.load_state_dict(unflatten("policy", tensors))
            self.learner.restore(tensors, metadata.get("learner", {}))
            self.collector.restore(unflatten("collector", tensors), metadata["collector"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: does not fit this run's settings ({reason})") from None
        self.updates, self.seconds = metadata["updates"], metadata["seconds"]
        best = metadata["best"]  # a number, without the return, in checkpoints of before
        self.best = tuple(best) if isinstance(best, list) else (float(best), 0.0)
        self.validation = metadata["validation"]

    def resume(self) -> Path:
        """Load the newest checkpoint of the run's folder that is whole.

        Raises:
            CheckpointError: there is none.
        """
        problems, refused = [], []
        for path in reversed(self.checkpoints.paths()):
            try:
                self.load_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                refused.append(path)
                continue
            for damaged in refused:  # out of the way, or it would be taken for the newest
                damaged.rename(damaged.with_name(damaged.name + ".damaged"))
            return path
        raise CheckpointError("; ".join(problems) or f"{self.checkpoints.folder}: no checkpoint in it")
