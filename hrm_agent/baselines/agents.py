"""The baselines: their settings, and how each is built.

Defaults are those of Stable-Baselines3 2.9 and sb3-contrib 2.9, except where a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from msgspec import Meta
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from hrm_agent.baselines.core_extractor import CoreExtractor
from hrm_agent.baselines.networks import GridCNN, GridMLP
from hrm_agent.names.values import (
    Count,
    CountOrNone,
    Depth,
    DepthOrNone,
    Many,
    ManyOrNone,
    NonNegative,
    Share,
    Width,
    WidthOrNone,
    check_fields,
    one_of,
)
from hrm_agent.policies.policy import READOUTS

TwoOrMore = Annotated[int, Meta(ge=2, le=65_536)]
CRITICS = {
    "lstm": {"shared_lstm": False, "enable_critic_lstm": True},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "features": {"shared_lstm": False, "enable_critic_lstm": False},
}
"""What the value network of sb3-contrib's RecurrentPPO reads, as its arguments."""


@dataclass(frozen=True)
class Settings:
    """Settings of all baselines.

    Args:
        num_envs: environments stepped side by side (the libraries' default is one).
        learning_rate: of Adam.
        anneal: decay the learning rate linearly to 0 over the run: by frames, and where the run has a time limit by
            whichever of frames and time is nearer its end.
        gamma: discount.
        max_grad_norm: largest norm of a gradient.
        width, layers: hidden layers of the policy and value networks, after the features.

    Raises:
        ValueError: a setting out of range.
    """

    num_envs: Count = 8
    learning_rate: NonNegative = 3e-4
    anneal: bool = False
    gamma: Share = 0.99
    max_grad_norm: NonNegative = 0.5
    width: Width = 64
    layers: DepthOrNone = 2

    def __post_init__(self) -> None:
        check_fields(self, "settings")

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

    n_steps: TwoOrMore = 2048
    batch_size: TwoOrMore = 64
    n_epochs: Count = 10
    gae_lambda: Share = 0.95
    clip_range: NonNegative = 0.2
    ent_coef: NonNegative = 0.0
    vf_coef: NonNegative = 0.5

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

    layers: DepthOrNone = 0
    channels: Width = 32
    conv_layers: Depth = 2
    features: Width = 256

    def network(self) -> dict[str, Any]:
        return {**super().network(), **_convolutions(self.channels, self.conv_layers, self.features)}


@dataclass(frozen=True)
class CorePPOSettings(PPOSettings):
    """PPO on the features of one of our cores with our encoder, see `core_extractor.CoreExtractor`.

    As in `sb3_ppo_cnn` no hidden layers follow the features. A core that has a state begins at its initial one for
    every decision.

    Args:
        core: its name; the shipped `feedforward` is our blocks without a state.
        hidden_size: width of the core and of the features.
        segments: calls of the core for a decision.
        readout: the token that is read: the `agent`'s, the `mean` of all, the `first` or the `last`.
        crop, patch_size: of the encoder (`policies.encoders.EncoderConfig`); the defaults suit our mazes.
    """

    layers: DepthOrNone = 0
    core: str = "feedforward"
    hidden_size: Width = 64
    segments: Depth = 1
    readout: Annotated[str, one_of(READOUTS)] = "agent"
    crop: CountOrNone = 1
    patch_size: Count = 2

    def network(self) -> dict[str, Any]:
        chosen = {name: getattr(self, name) for name in ("core", "hidden_size", "segments", "readout")}
        arguments = {**chosen, "encoder": {"crop": self.crop, "patch_size": self.patch_size}}
        extractor = {"features_extractor_class": CoreExtractor, "features_extractor_kwargs": arguments}
        return {**super().network(), **extractor}


@dataclass(frozen=True)
class RecurrentPPOSettings(PPOSettings):
    """PPO with an LSTM for the policy and, by default, one for the value, on the features.

    A minibatch is cut into sequences at the ends of episodes, which the library pads to the longest of them; large
    minibatches take fewer, wider steps of the LSTM and are several times as fast.

    Args:
        lstm_size: units of each LSTM.
        lstm_layers: layers of each LSTM.
        critic: what the value network reads: `lstm`, an LSTM of its own; `shared`, the policy's LSTM, without a
            gradient into it; `features`, what the LSTM reads.
        channels: of the convolutions before the LSTMs (`GridCNN`); 0: none.
        conv_layers, features: of `GridCNN`, where there is one; `features` is also the width of `GridMLP`.
        mlp_layers: hidden layers before the LSTMs (`GridMLP`) in place of convolutions. 0, as in the library: none,
            the LSTMs read the observation itself.

    Raises:
        ValueError: a setting out of range, or both convolutions and hidden layers before the LSTMs.
    """

    n_steps: TwoOrMore = 128
    batch_size: TwoOrMore = 128
    lstm_size: Width = 256
    lstm_layers: Depth = 1
    critic: Annotated[str, one_of(CRITICS)] = "lstm"
    channels: WidthOrNone = 0
    conv_layers: Depth = 2
    features: Width = 256
    mlp_layers: DepthOrNone = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels and self.mlp_layers:
            raise ValueError(
                f"settings.mlp_layers={self.mlp_layers}: expected 0 with settings.channels={self.channels}; "
                "choose convolutions or hidden layers before the LSTMs"
            )

    def network(self) -> dict[str, Any]:
        extractor = _convolutions(self.channels, self.conv_layers, self.features)
        if self.mlp_layers:
            sizes = {"features": self.features, "layers": self.mlp_layers}
            extractor = {"features_extractor_class": GridMLP, "features_extractor_kwargs": sizes}
        lstm = {"lstm_hidden_size": self.lstm_size, "n_lstm_layers": self.lstm_layers, **CRITICS[self.critic]}
        return {**super().network(), **extractor, **lstm}


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

    learning_rate: NonNegative = 1e-4
    max_grad_norm: NonNegative = 10.0
    buffer_size: Many = 200_000
    learning_starts: ManyOrNone = 100
    batch_size: TwoOrMore = 32
    train_freq: Count = 4
    gradient_steps: Count = 1
    tau: Share = 1.0
    target_update_interval: Many = 10_000
    exploration_fraction: Share = 0.1
    exploration_final: Share = 0.05
    channels: WidthOrNone = 0
    conv_layers: Depth = 2
    features: Width = 256

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
    "sb3_ppo_core": Baseline(CorePPOSettings, PPO, "MlpPolicy"),  # so is its
    "sb3_recurrent_ppo": Baseline(RecurrentPPOSettings, RecurrentPPO, "MlpLstmPolicy"),
    "sb3_dqn": Baseline(DQNSettings, DQN, "MlpPolicy"),
}


def layout_of(settings: Settings) -> str:
    """The layout of observations that the network of `settings` reads (`observations.LAYOUTS`)."""
    if isinstance(settings, CorePPOSettings):
        return "raw"
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
