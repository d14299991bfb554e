"""The training loop: collect, update, evaluate, log, checkpoint.

A checkpoint holds everything that the next update depends on and is taken between updates, so a run that was killed
and resumed ends with the same weights as an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from hrm_agent import __version__
from hrm_agent.agents.agent import Agent
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.environments.action_masks import AUTO, CHOICES, SETTING
from hrm_agent.environments.make import compile_env, is_compiled
from hrm_agent.environments.workers import check_workers
from hrm_agent.evaluation.report import evaluate_policy
from hrm_agent.evaluation.video import encode_gif, record_episodes
from hrm_agent.experience.collector import Collector
from hrm_agent.kernels.cpu import build
from hrm_agent.names.values import Episodes, Steps, StepsOrNone, Workers, one_of
from hrm_agent.parallel.cuda import CudaConfig
from hrm_agent.parallel.graphs import Say, Wrap, graph_wrapper
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.stopping import Stopped
from hrm_agent.parallel.threads import Threads, instruction_set
from hrm_agent.policies.encoders import Encoder
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.recurrence import available, has_kernels, use, without_compile
from hrm_agent.recurrence.cuda import CUDACore, use_cuda
from hrm_agent.recurrence.kernel_timing import Choice
from hrm_agent.tensors.saved import Total, check_tensors, converted
from hrm_agent.tensors.trees import flatten, unflatten
from hrm_agent.training.callbacks import Callback
from hrm_agent.training.kernel_work import measure_policy, passes_of
from hrm_agent.training.learners import AlgoConfig, build_env, build_learner, check_processes
from hrm_agent.training.loggers import TENSORBOARD, Logger, logger_names, open_loggers
from hrm_agent.training.loop import LoopConfig, RunLoop
from hrm_agent.training.tracking import Console, RunLog
from hrm_agent.training.waiting import Waiting
from hrm_agent.training.warm_start import freeze, initialise, parse_parts

VIDEO_EPISODES = 2
VIDEO_FPS = 8
VIDEO_TAG = "validation/video"
"""In TensorBoard, which shows no picture under the tag of a number (`validation/episodes` is one)."""
CURVE_LEVELS = 100
"""Of `validation_quick`, whose points are all on the same levels: between two evaluations one sees how it goes."""
COMPILES = "compiling the environments (once for each kind of environment on this machine)"
COMPILES_BOTH = "compiling the environments (once for each kind of them on this machine) and the C++ kernels"
COMPILES_KERNELS = "compiling the C++ kernels"
ActionMasks = Annotated[str, one_of(CHOICES)]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(LoopConfig):
    """A run's own settings, besides the policy's and the algorithm's. Units are environment frames, in whole rollouts.

    `init_from` is read by `warm_start.initialise`, and ignored when resuming from a checkpoint. Parts of a policy
    are `encoder`, `core`, `carry` and `heads`, separated by commas, or `all`.
    """

    env: str  # Gymnasium id
    env_options: dict[str, Any]  # keyword arguments of the environment
    action_masks: ActionMasks = AUTO  # auto | ignore: masks of legal actions that an environment gives
    env_workers: Workers | None = 0  # processes that step environments of other packages; 0: none; auto: it is measured
    total_steps: Steps  # environment frames of training
    checkpoint_every: StepsOrNone = 100_000  # frames between checkpoints; 0: only at the beginning and at the end
    keep_checkpoints: Steps = 3  # checkpoints that are kept
    eval_every: StepsOrNone = 150_000  # frames between greedy evaluations on validation levels; 0: only at the end
    eval_episodes: Episodes = 1000  # validation levels of an evaluation
    curve_every: StepsOrNone = 75_000  # frames between points of validation_quick, on 100 validation levels; 0: none
    video_every: StepsOrNone = 0  # frames between videos in TensorBoard; 0: only at the end
    log_every: Steps = 20_000  # frames between lines of the log
    loggers: str = TENSORBOARD  # where the log goes besides metrics.jsonl: tensorboard, wandb, mlflow, or several
    init_from: str | None = None  # agent, run or supervised model whose weights the run starts from
    init_parts: str = "core,encoder"  # of them; encoder, core, carry, heads or all
    freeze: str = ""  # parts that are not trained
    cuda: CudaConfig = field(default_factory=CudaConfig)  # what is switched on where the device is a CUDA device

    @property
    def made_with(self) -> dict[str, Any]:
        """The options that its environments are made with."""
        return self.env_options if self.action_masks == AUTO else {**self.env_options, SETTING: self.action_masks}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workers(self.env_workers)
        logger_names(self.loggers)
        parse_parts(self.freeze, "freeze")
        if not parse_parts(self.init_parts, "init_parts"):
            raise ValueError(f"init_parts={self.init_parts}: expected at least one part of a policy, or all")


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


def wrap_for(policy: Policy, algo: AlgoConfig, threads: Threads, say: Say) -> Wrap | None:
    """What puts a policy's decisions and PPO's gradients into CUDA graphs; None where they cannot be, which is said."""
    if policy.config.stop != "fixed":
        say(f"cuda.graphs: not used with stop={policy.config.stop}, whose batches change their size")
        return None
    if threads.count > 1:
        say(f"cuda.graphs: not used with threads={threads.count}; expected 1, as threads=auto gives on a GPU")
        return None
    if isinstance(algo, PPOConfig) and algo.min_segments:
        say(f"cuda.graphs: not used with algo.min_segments={algo.min_segments}: a graph has one number of segments")
        return None
    if not isinstance(algo, PPOConfig):
        say("cuda.graphs: of the decisions alone; only algo=ppo has them for its update too")
    for encoder in (m for m in policy.modules() if isinstance(m, Encoder)):
        encoder.graphable = True
    return graph_wrapper(policy.device, say)


def _uses_kernels(policy: Policy, config: TrainerConfig) -> bool:
    if config.kernel not in ("auto", "fused", "fused_bf16") or config.device != "cpu":
        return False
    return has_kernels(policy)


def _waiting(console: Console | None, what: str | Callable[[], str]) -> Waiting:
    return Waiting(what, quiet=True) if console is None else console.waiting(what)


class Trainer(RunLoop):
    """Args:
    config, policy_config, algo_config: see their classes.
    folder: of the run; checkpoints, agents and logs go there.
    console: where compilation is announced; None for silence.
    processes: processes that train the policy together, each with its share of the environments.
    callbacks: called in each process, see `Callback`.
    more_loggers: where the log goes besides those that `config.loggers` names; closed with the run.

    Attributes:
        progress: numbers of the last update by name, of the environments' episodes and the losses.
        validation: those of the last evaluation on validation levels.

    Raises:
        ValueError: settings that do not fit each other or the environment. Nothing has been written then.
    """

    config: TrainerConfig
    duties = ("validate", "curve", "video", "checkpoint")
    allow_bf16 = True

    def __init__(
        self,
        config: TrainerConfig,
        policy_config: PolicyConfig,
        algo_config: AlgoConfig,
        folder: Path,
        console: Console | None = None,
        processes: Processes = SINGLE_PROCESS,
        callbacks: Sequence[Callback] = (),
        more_loggers: Sequence[Logger] = (),
    ) -> None:
        super().__init__(config, folder, processes)
        self.callbacks, self.more_loggers = callbacks, more_loggers
        check_processes(algo_config, processes)
        num_envs, workers = algo_config.num_envs // processes.world_size, config.env_workers or 0
        self.env = build_env(algo_config, config.env, num_envs, config.made_with, workers)
        if not is_compiled(self.env):
            with _waiting(console, lambda: COMPILES if build.compiling_for() is None else COMPILES_BOTH):
                compile_env(self.env)
        torch.manual_seed(config.seed)
        space = self.env.single_observation_space
        policy = Policy(policy_config, space, self.env.single_action_space)
        prepare(policy, config, fresh=self.checkpoints.latest() is None)
        self.policy = policy.to(processes.device(config.device))
        processes.broadcast(self.policy.state_dict().values())
        if _uses_kernels(self.policy, config) and not build.is_ready():
            with _waiting(console, COMPILES_KERNELS):
                available("fused")
        if config.kernel != "auto":
            self.kernel = use(self.policy, config.kernel)
        self.cuda: CUDACore | None = None
        wrap = self._accelerate(algo_config, print if console is None else console.say)
        self.collector = Collector(self.env, self.policy, config.seed, self.threads, processes, wrap)
        self.learner = build_learner(self.policy, algo_config, space, self.collector, self.threads, config.seed)
        self.algo = self.learner.algo
        self.updates = 0
        self.best = (-1.0, 0.0)  # success and return on validation levels
        self.progress: dict[str, float] = {}
        self.validation: dict[str, Any] = {}
        self._validated = [-1, 0]  # frames and levels of the last validation

    def _accelerate(self, algo: AlgoConfig, say: Say) -> Wrap | None:
        """What a CUDA device is for beyond moving tensors: see `CudaConfig`."""
        cuda = self.config.cuda
        if self.policy.device.type != "cuda":
            return None
        if self.processes.world_size > 1:
            say("several processes: without CUDA graphs and bfloat16 (cuda.*), which know one process")
            return None
        self.cuda = use_cuda(self.policy, cuda.bf16, cuda.triton, say)
        return wrap_for(self.policy, algo, self.threads, say) if cuda.graphs else None

    @property
    def frames(self) -> int:
        return self.collector.frames

    @property
    def position(self) -> int:
        return self.frames

    @property
    def step_size(self) -> int:
        return self.frames // max(1, self.updates)

    def networks(self) -> Sequence[nn.Module]:
        return self.learner.networks()

    def measure_kernel(self, paths: Sequence[str]) -> Choice:
        passes = passes_of(self.algo.config)
        return measure_policy(self.policy, paths, passes, self.collector.obs, self.threads, self.processes.world_size)

    def iterate(self, log: RunLog, console: Console) -> None:
        before, done, began = self.frames, self.done, self.now()
        if self.cuda is not None:
            self.cuda.weights_changed()  # a replayed decision would not see it
        with self.naming_checkpoint():
            self.learner.collect(self.collector, done)
        collected = self.now()
        with self.naming_checkpoint():
            losses = self.learner.update(done)
        updated = self.now()
        self.updates += 1
        self.seconds += updated - began
        progress = {
            **self.collector.statistics(),
            **self.learner.statistics(),
            "frames_per_second": self.frames / self.seconds,
        }
        self.progress = {**progress, **losses}
        if self.due(self.config.log_every, before):
            speed = {"collect_seconds": collected - began, "update_seconds": updated - collected}
            log.scalars(self.frames, train=progress, loss=losses, time=speed)
        c = self.config
        every = {"validate": c.eval_every, "video": c.video_every, "checkpoint": c.checkpoint_every}
        every["curve"] = c.curve_every if c.eval_every else 0
        self.attend([duty for duty in self.duties if self.due(every[duty], before)], log, console)
        measures = ("success",) if hasattr(self.env.unwrapped, "clairvoyant") else ("success", "return")
        greedy = {f"validation_{measure}": self.validation.get(measure) for measure in measures}
        console.progress(self.frames, {**progress, **greedy}, measures)
        self._notify("on_update")

    def open_loggers(self) -> Sequence[Logger]:
        opened = [*open_loggers(logger_names(self.config.loggers), self.folder, self.frames), *self.more_loggers]
        for logger in opened:
            logger.hyperparameters(self._settings(), {})
        return opened

    def _notify(self, event: str) -> None:
        """Call a method of each callback. Where one raises, a checkpoint is written first."""
        try:
            answers = [getattr(callback, event)(self) for callback in self.callbacks]
        except BaseException:
            self.save_checkpoint()
            raise
        if any(answer is False for answer in answers):
            self.stop()

    def perform(self, duty: str, log: RunLog, console: Console) -> None:
        if duty == "validate":
            self.validate(log)
        elif duty == "curve":
            log.scalars(self.frames, validation_quick=self._evaluate(min(CURVE_LEVELS, self.config.eval_episodes)))
        elif duty == "video":
            self._record_video(log, console)
        else:
            self.save_checkpoint()

    def validate(self, log: RunLog) -> None:
        """Measure the policy on validation levels, and keep the best agent.

        Raises:
            Stopped: by a signal, in all processes; nothing has been changed.
        """
        self.validation = self._evaluate(self.config.eval_episodes)
        self._validated = [self.frames, self.config.eval_episodes]
        log.scalars(self.frames, validation=self.validation)
        reached = (self.validation["success"], self.validation["return"])
        if reached >= self.best:  # the later of equals, which was trained longer
            self.best = reached
            self._save_agent("best")
        self._notify("on_evaluation")

    def _evaluate(self, levels: int) -> dict[str, Any]:
        """Greedy on the first validation levels: `evaluation.report.evaluate_policy`."""
        self.policy.divide(1)  # levels are dealt out to threads of Python
        with without_compile(self.policy):  # fewer levels at once than environments in training
            return evaluate_policy(
                self.policy,
                self.config.env,
                self.config.made_with,
                levels,
                split="validation",
                threads=self.threads,
                processes=self.processes,
                check_stop=self.check_stop,
                workers=self.config.env_workers or 0,
            )

    def _save_agent(self, name: str) -> None:
        if self.processes.is_rank_zero:
            self.agent().save(self.folder / "agents" / name)

    def _record_video(self, log: RunLog, console: Console) -> None:
        if not self.processes.is_rank_zero:
            return
        try:
            frames = record_episodes(
                self.policy,
                self.config.env,
                self.config.made_with,
                VIDEO_EPISODES,
                seed=0,
                split="validation",
                check_stop=self.check_stop,
            )
        except Stopped:
            raise
        except Exception as error:  # the environment's own code renders; a failure must not end the run
            console.say(f"no video of this run: {' '.join(str(error).split()) or type(error).__name__}")
            return
        log.video(self.frames, VIDEO_TAG, encode_gif(frames, VIDEO_FPS), frames[0].shape)

    def finish(self, log: RunLog, console: Console) -> None:
        self._save_agent("last")
        self.save_checkpoint()  # before the environments are played again: whatever they do, the training is kept
        if self._validated != [self.frames, self.config.eval_episodes]:
            what = f"measuring on {self.config.eval_episodes:,} validation levels"
            with console.waiting(what), self.interruptible():
                self.validate(log)
            self._save_agent("last")
            self.save_checkpoint()
        with console.waiting("recording a video of two episodes"), self.interruptible():
            self._record_video(log, console)
        log.hyperparameters(self._settings(), {"validation/success": self.validation["success"]})
        self._notify("on_end")

    def _settings(self) -> dict[str, Any]:
        return {
            **{k: v for k, v in asdict(self.config).items() if not isinstance(v, dict)},
            **{k: v for k, v in self.policy.config.to_dict().items() if not isinstance(v, dict)},
            **asdict(self.algo.config),
        }

    def agent(self) -> Agent:
        """The current policy as an agent, with its metadata."""
        c, p = self.config, self.policy.config
        info = {
            "env": c.env,
            "env_options": c.made_with,
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
            "kernel": self.kernel,
            "instruction_set": instruction_set(),
            "parameters": sum(x.numel() for x in self.policy.parameters()),
            "validation": dict(sorted(self.validation.items())),  # as a checkpoint has them
            "hrm_agent_version": __version__,
        }
        space, actions = self.env.single_observation_space, self.env.single_action_space
        agent = Agent(self.policy, space, actions, info)
        self.policy.train()
        return agent

    def save_checkpoint(self) -> Path:
        self.processes.check_equal(self.policy.state_dict().values(), f"at {self.frames:,} frames: the weights")
        return super().save_checkpoint()

    def tensors(self) -> dict[str, Tensor]:
        return {
            **flatten("policy", self.policy.state_dict()),
            **self.learner.tensors(),
            **flatten("collector", self.collector.tensors()),
        }

    def metadata(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "best": self.best,
            "validation": self.validation,
            "validated": self._validated,
            "collector": self.collector.metadata(),
            "learner": self.learner.metadata(),
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        saved, weights = converted("checkpoint", metadata, _Metadata), unflatten("policy", tensors)
        check_tensors("policy", weights, self.policy.state_dict())
        self.learner.check(tensors, saved.learner)
        # Before anything is changed: its environment may refuse.
        self.collector.restore(unflatten("collector", tensors), saved.collector)
        self.policy.load_state_dict(weights)
        self.learner.restore(tensors, saved.learner)
        self.updates, self.validation, self._validated = saved.updates, saved.validation, list(saved.validated)
        self.best = saved.best if isinstance(saved.best, tuple) else (saved.best, 0.0)


class _Metadata(msgspec.Struct):
    """The JSON part of a checkpoint. Earlier ones lack what has a default; `best` was a number, without the return."""

    updates: Total
    best: tuple[float, float] | float
    validation: dict[str, Any]
    collector: dict[str, Any]
    validated: tuple[int, int] = (-1, 0)
    learner: dict[str, Any] = {}
