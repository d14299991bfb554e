"""The four baselines: their settings, and how each is built.

Defaults are those of Stable-Baselines3 2.9 and sb3-contrib 2.9, except where a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from hrm_agent.baselines.networks import GridCNN

LEAST: dict[str, float] = {
    "num_envs": 1, "n_steps": 2, "batch_size": 2, "n_epochs": 1, "width": 1, "layers": 0, "channels": 0,
    "conv_layers": 1, "features": 1, "lstm_size": 1, "buffer_size": 1, "learning_starts": 0, "train_freq": 1,
    "gradient_steps": 1, "target_update_interval": 1, "learning_rate": 0, "gamma": 0, "gae_lambda": 0,
    "clip_range": 0, "ent_coef": 0, "vf_coef": 0, "max_grad_norm": 0, "tau": 0, "exploration_fraction": 0,
    "exploration_final": 0,
}  # fmt: skip
AT_MOST_1 = ("gamma", "gae_lambda", "tau", "exploration_fraction", "exploration_final")


@dataclass(frozen=True)
class Settings:
    """Settings of all baselines.

    Args:
        num_envs: environments stepped side by side (the libraries' default is one).
        learning_rate: of Adam.
        anneal: decay the learning rate linearly to 0 over the run.
        gamma: discount.
        max_grad_norm: largest norm of a gradient.
        width, layers: hidden layers of the policy and value networks, after the features.

    Raises:
        ValueError: a setting out of range.
    """

    num_envs: int = 8
    learning_rate: float = 3e-4
    anneal: bool = False
    gamma: float = 0.99
    max_grad_norm: float = 0.5
    width: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool) and value < LEAST[name]:
                raise ValueError(f"settings.{name}={value}: expected {LEAST[name]} or more")
            if name in AT_MOST_1 and value > 1:
                raise ValueError(f"settings.{name}={value}: expected at most 1")

    def rate(self) -> float | LinearSchedule:
        return LinearSchedule(self.learning_rate, 0.0, 1.0) if self.anneal else self.learning_rate

    def network(self) -> dict[str, Any]:
        """Stable-Baselines3's `policy_kwargs`."""
        return {"net_arch": [self.width] * self.layers}


@dataclass(frozen=True)
class PPOSettings(Settings):
    """PPO (arXiv 1707.06347) with separate networks of the same shape for policy and value.

    Args:
        n_steps: steps of each environment between updates.
        batch_size: decisions in a minibatch; a divisor of `num_envs * n_steps`.
        n_epochs: passes over a rollout.
        gae_lambda, clip_range, ent_coef, vf_coef: as in PPO.
    """

    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = self.num_envs * self.n_steps
        if rows % self.batch_size:
            raise ValueError(
                f"settings.batch_size={self.batch_size}: expected a divisor of num_envs * n_steps = {rows}"
            )

    def algorithm(self) -> dict[str, Any]:
        """Keyword arguments of Stable-Baselines3's PPO."""
        names = ("gamma", "max_grad_norm", "n_steps", "batch_size", "n_epochs", "gae_lambda", "clip_range")
        return {name: getattr(self, name) for name in (*names, "ent_coef", "vf_coef")}


@dataclass(frozen=True)
class ConvolutionalPPOSettings(PPOSettings):
    """PPO on planes, see `networks.GridCNN`; as with the library's own CNN, no hidden layers follow the features.

    Args:
        channels, conv_layers, features: of `GridCNN`.
    """

    layers: int = 0
    channels: int = 32
    conv_layers: int = 2
    features: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise ValueError(f"settings.channels={self.channels}: expected 1 or more")

    def network(self) -> dict[str, Any]:
        return {**super().network(), **_convolutions(self.channels, self.conv_layers, self.features)}


@dataclass(frozen=True)
class RecurrentPPOSettings(PPOSettings):
    """PPO with one LSTM for the policy and one for the value, on the features.

    Args:
        lstm_size: units of each LSTM.
        channels: of the convolutions before the LSTMs (`GridCNN`); 0, as in the library: none, the LSTMs read the
            observation itself.
        conv_layers, features: of `GridCNN`, where there is one.
    """

    n_steps: int = 128
    batch_size: int = 128
    lstm_size: int = 256
    channels: int = 0
    conv_layers: int = 2
    features: int = 256

    def network(self) -> dict[str, Any]:
        convolutions = _convolutions(self.channels, self.conv_layers, self.features)
        return {**super().network(), **convolutions, "lstm_hidden_size": self.lstm_size}


@dataclass(frozen=True)
class DQNSettings(Settings):
    """DQN (doi 10.1038/nature14236).

    Args:
        buffer_size: frames kept for replay; the library's default of a million would take a gigabyte here.
        learning_starts: frames before the first update.
        batch_size: decisions in an update.
        train_freq: steps of all environments between updates.
        gradient_steps: updates then.
        tau, target_update_interval: soft-update coefficient of the target network, and frames between updates.
        exploration_fraction: part of the run over which epsilon decays from 1 to `exploration_final`.
        channels: of the convolutions before the hidden layers (`GridCNN`); 0: none.
        conv_layers, features: of `GridCNN`, where there is one.
    """

    learning_rate: float = 1e-4
    max_grad_norm: float = 10.0
    buffer_size: int = 200_000
    learning_starts: int = 100
    batch_size: int = 32
    train_freq: int = 4
    gradient_steps: int = 1
    tau: float = 1.0
    target_update_interval: int = 10_000
    exploration_fraction: float = 0.1
    exploration_final: float = 0.05
    channels: int = 0
    conv_layers: int = 2
    features: int = 256

    def network(self) -> dict[str, Any]:
        return {**super().network(), **_convolutions(self.channels, self.conv_layers, self.features)}

    def algorithm(self) -> dict[str, Any]:
        """Keyword arguments of Stable-Baselines3's DQN."""
        names = ("gamma", "max_grad_norm", "buffer_size", "learning_starts", "batch_size", "train_freq")
        more = ("gradient_steps", "tau", "target_update_interval", "exploration_fraction")
        same = {name: getattr(self, name) for name in (*names, *more)}
        return {**same, "exploration_final_eps": self.exploration_final}


def _convolutions(channels: int, conv_layers: int, features: int) -> dict[str, Any]:
    if channels == 0:
        return {}
    sizes = {"channels": channels, "conv_layers": conv_layers, "features": features}
    return {"features_extractor_class": GridCNN, "features_extractor_kwargs": sizes, "normalize_images": False}


class Baseline(NamedTuple):
    """Class of the settings, and of the algorithm with the name of its policy."""

    settings: type[Settings]
    algorithm: Callable[..., BaseAlgorithm]
    policy: str


BASELINES = {
    "sb3_ppo_mlp": Baseline(PPOSettings, PPO, "MlpPolicy"),
    "sb3_ppo_cnn": Baseline(ConvolutionalPPOSettings, PPO, "MlpPolicy"),  # its network is in the policy_kwargs
    "sb3_recurrent_ppo": Baseline(RecurrentPPOSettings, RecurrentPPO, "MlpLstmPolicy"),
    "sb3_dqn": Baseline(DQNSettings, DQN, "MlpPolicy"),
}


def layout_of(settings: Settings) -> str:
    """The layout of observations that the network of `settings` reads (`observations.LAYOUTS`)."""
    return "planes" if getattr(settings, "channels", 0) else "flat"


def build_model(name: str, settings: Any, venv: VecEnv, seed: int) -> BaseAlgorithm:
    """An untrained model on the CPU.

    Args:
        name: one of `BASELINES`.
        settings: of its class.
        venv: with observations in the layout `layout_of(settings)`.
        seed: of weights, actions, minibatches and environments.
    """
    kind = BASELINES[name]
    return kind.algorithm(
        kind.policy,
        venv,
        learning_rate=settings.rate(),
        policy_kwargs=settings.network(),
        seed=seed,
        device="cpu",
        **settings.algorithm(),
    )
