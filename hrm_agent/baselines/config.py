"""The settings of a baseline's run; without the libraries that train it, so that they can be asked for anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from hrm_agent.names.values import (
    Episodes,
    EpisodesOrNone,
    NonNegative,
    Steps,
    StepsOrNone,
    check_fields,
    checked,
    one_of,
    typed,
)
from hrm_agent.training.loop import Clock

NumpySeed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""What Stable-Baselines3 seeds numpy with."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of a baseline.

    Raises:
        ValueError: a setting out of range.
    """

    baseline: str  # sb3_ppo_mlp | sb3_ppo_cnn | sb3_ppo_core | sb3_recurrent_ppo | sb3_dqn
    env: str = "DynamicMaze-v0"  # Gymnasium id
    env_options: dict[str, Any] = field(default_factory=dict)  # changed arguments of it, e.g. env_options.view=2
    settings: Any = field(default_factory=dict)  # changed settings of the baseline, e.g. settings.learning_rate=1e-3
    seed: NumpySeed = 0  # of weights, levels, actions and minibatches
    total_steps: Steps = 2_000_000  # environment frames; rounded up to whole rollouts
    max_seconds: NonNegative = 0.0  # time limit of training, which ends it before total_steps; 0: no limit
    clock: Clock = "wall"  # wall | cpu: how seconds of training are counted; cpu on a machine with other work
    log_every: Steps = 20_000  # frames between lines of metrics.jsonl
    eval_every: StepsOrNone = 100_000  # frames between greedy evaluations on validation levels; 0: only at the end
    eval_episodes: Episodes = 500  # validation levels of an evaluation
    test_episodes: EpisodesOrNone = 1000  # of the final evaluation on test levels; 0: none

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def parse(cls, options: dict[str, Any]) -> RunConfig:
        """From the options of the command, `settings` being the changed ones.

        Raises:
            ValueError: an unknown baseline or setting, or one of another type or out of range.
        """
        from hrm_agent.baselines.agents import BASELINES

        name = checked("baseline", options["baseline"], Annotated[str, one_of(BASELINES)])
        settings = typed(BASELINES[name].settings, options["settings"] or {}, "settings")
        return cls(**{**options, "settings": settings, "env_options": options["env_options"] or {}})


@dataclass(frozen=True, kw_only=True)
class Options(RunConfig):
    """Train one baseline of Stable-Baselines3, and measure it."""

    out: str  # folder of the run
