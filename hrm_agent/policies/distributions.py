"""Distributions over actions, one class per action space.

A distribution has no weights and no state: `params` float `[..., P]` go in, actions and probabilities come out.
Actions are numbered from 0 inside the toolkit; `to_env` converts them to the environment's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INITIAL_LOG_STD = -0.5
MASKED = -1e9
"""Logit, or Q-value, of an action that is not legal: its probability is exactly 0. Finite, so that entropies and KL
divergences are; and its square too."""


class Distribution(ABC):
    """A distribution over the actions of one space.

    Attributes:
        outputs: size of the policy head's output.
        free: P - outputs, the number of learned parameters that do not depend on the observation.
        summary_size: size S of `summary`.
        shape, dtype: of one action.
        uniforms: number R of uniform numbers that `icdf` and `uniform` need for an action.
    """

    outputs: int
    free: int = 0
    summary_size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    uniforms: int = 1
    sizes: tuple[int, ...] = ()
    """Of the choices that an action consists of; empty where these are not finite, and cannot be masked."""

    def open_choices(self, legal: Tensor) -> Tensor:
        """A mask bool `[..., P]` in which a choice without any legal action has all of them."""
        parts = [part | ~part.any(-1, keepdim=True) for part in legal.split(self.sizes, -1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @abstractmethod
    def best(self, params: Tensor) -> Tensor:
        """The mode, `[..., *shape]`."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions `[B, *shape]` drawn with a generator on the CPU, and their log-probabilities `[B]`."""

    @abstractmethod
    def icdf(self, params: Tensor, uniforms: Tensor) -> Tensor:
        """Actions by the inverse distribution function at `uniforms` `[B, R]` in [0, 1)."""

    @abstractmethod
    def uniform(self, uniforms: Tensor, legal: Tensor | None = None) -> Tensor:
        """Actions `[B, *shape]` distributed uniformly over the space, from `uniforms` `[B, R]`.

        Args:
            legal: bool `[B, P]`, the actions to draw from, one or more of each choice; None: all.
        """

    @abstractmethod
    def evaluate(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of `actions` and entropy, both `[...]`."""

    @abstractmethod
    def divergence(self, params: Tensor, other: Tensor) -> Tensor:
        """KL divergence in nats of `params` from `other`, `[...]`."""

    @abstractmethod
    def summary(self, params: Tensor) -> Tensor:
        """The distribution as S numbers of moderate size, `[..., S]`, as the input of a network."""

    @abstractmethod
    def to_env(self, actions: Tensor) -> NDArray:
        """Actions in the environment's format, on the CPU."""


class Categorical(Distribution):
    """`Discrete`: parameters are logits."""

    def __init__(self, space: gym.spaces.Discrete) -> None:
        self.outputs = self.summary_size = int(space.n)
        self.sizes = (self.outputs,)
        self.first = int(space.start)
        self.shape, self.dtype = (), torch.int64

    def best(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def sample(self, params: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        log_probs = params.log_softmax(-1)
        # Drawn on the CPU whatever the device of the logits, so that all devices use the same random numbers.
        actions = torch.multinomial(log_probs.exp().cpu(), 1, generator=generator).to(params.device)
        return actions.squeeze(-1), log_probs.gather(-1, actions).squeeze(-1)

    def icdf(self, params: Tensor, uniforms: Tensor) -> Tensor:
        probabilities = params.float().softmax(-1)
        edges = probabilities.cumsum(-1)[..., :-1]
        # The sum of all can be rounded to less than 1, and what is drawn above it is not the last action where that
        # one has no probability.
        last = ((probabilities > 0) * torch.arange(self.outputs, device=params.device)).amax(-1)
        return (uniforms >= edges).sum(-1).minimum(last)

    def uniform(self, uniforms: Tensor, legal: Tensor | None = None) -> Tensor:
        if legal is None:
            return (uniforms[..., 0] * self.outputs).long()
        count = legal.cumsum(-1)
        drawn = (uniforms[..., :1] * count[..., -1:]).long()  # of the legal ones, counted from 0
        return (count > drawn).to(torch.uint8).argmax(-1)

    def evaluate(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = params.log_softmax(-1)
        chosen = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return chosen, -(log_probs.exp() * log_probs).sum(-1)

    def divergence(self, params: Tensor, other: Tensor) -> Tensor:
        log_probs = params.log_softmax(-1)
        # Rounding can make a divergence of 0 negative.
        return (log_probs.exp() * (log_probs - other.log_softmax(-1))).sum(-1).clamp_min(0.0)

    def summary(self, params: Tensor) -> Tensor:
        return params.softmax(-1)

    def to_env(self, actions: Tensor) -> NDArray:
        return actions.cpu().numpy() + self.first


class MultiCategorical(Distribution):
    """`MultiDiscrete` of one dimension: independent choices, their logits concatenated."""

    def __init__(self, space: gym.spaces.MultiDiscrete) -> None:
        self.sizes = tuple(int(n) for n in space.nvec)
        self.parts = [Categorical(gym.spaces.Discrete(n)) for n in self.sizes]
        self.first = np.asarray(space.start)
        self.outputs = self.summary_size = sum(self.sizes)
        self.shape, self.dtype = (len(self.sizes),), torch.int64
        self.uniforms = len(self.sizes)

    def best(self, params: Tensor) -> Tensor:
        return torch.stack([part.argmax(-1) for part in params.split(self.sizes, -1)], -1)

    def sample(self, params: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = [d.sample(p, generator) for d, p in zip(self.parts, params.split(self.sizes, -1), strict=True)]
        return torch.stack([a for a, _ in drawn], -1), torch.stack([p for _, p in drawn], -1).sum(-1)

    def icdf(self, params: Tensor, uniforms: Tensor) -> Tensor:
        each = zip(self.parts, params.split(self.sizes, -1), uniforms.split(1, -1), strict=True)
        return torch.stack([d.icdf(p, r) for d, p, r in each], -1)

    def uniform(self, uniforms: Tensor, legal: Tensor | None = None) -> Tensor:
        masks = [None] * len(self.sizes) if legal is None else legal.split(self.sizes, -1)
        each = zip(self.parts, uniforms.split(1, -1), masks, strict=True)
        return torch.stack([d.uniform(r, mask) for d, r, mask in each], -1)

    def evaluate(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        each = zip(self.parts, params.split(self.sizes, -1), actions.unbind(-1), strict=True)
        log_probs, entropies = zip(*(d.evaluate(p, a) for d, p, a in each), strict=True)
        return torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0)

    def divergence(self, params: Tensor, other: Tensor) -> Tensor:
        each = zip(self.parts, params.split(self.sizes, -1), other.split(self.sizes, -1), strict=True)
        return torch.stack([d.divergence(p, o) for d, p, o in each]).sum(0)

    def summary(self, params: Tensor) -> Tensor:
        return torch.cat([part.softmax(-1) for part in params.split(self.sizes, -1)], -1)

    def to_env(self, actions: Tensor) -> NDArray:
        return actions.cpu().numpy() + self.first


class Gaussian(Distribution):
    """`Box`: independent normals; parameters are the means, then the logarithms of the standard deviations.

    The deviations are free parameters, as usual in PPO (Andrychowicz et al. 2021, arXiv 2006.05990). Where the space
    is bounded, its bounds are scaled to -1 and 1, and `to_env` clips to them.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        self.space_shape, self.space_dtype = space.shape, space.dtype
        self.outputs = self.free = self.summary_size = int(np.prod(space.shape))
        self.shape, self.dtype = (self.outputs,), torch.float32
        self.uniforms = self.outputs
        low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
        bounded = np.isfinite(low) & np.isfinite(high)
        self.low, self.high, self.bounded = low, high, bounded
        self.middle, self.half = np.zeros(self.outputs), np.ones(self.outputs)
        self.middle[bounded] = (high[bounded] + low[bounded]) / 2
        self.half[bounded] = (high[bounded] - low[bounded]) / 2

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = params.split(self.outputs, -1)
        return mean, log_std

    def best(self, params: Tensor) -> Tensor:
        return self._split(params)[0]

    def sample(self, params: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mean, log_std = self._split(params)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        actions = mean + log_std.exp() * noise
        return actions, self.evaluate(params, actions)[0]

    def icdf(self, params: Tensor, uniforms: Tensor) -> Tensor:
        mean, log_std = self._split(params)
        return mean + log_std.exp() * _normal_icdf(uniforms)

    def uniform(self, uniforms: Tensor, legal: Tensor | None = None) -> Tensor:
        return torch.where(torch.from_numpy(self.bounded), (2 * uniforms - 1).float(), _normal_icdf(uniforms))

    def evaluate(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._split(params)
        scaled = (actions - mean) * (-log_std).exp()
        log_prob = -(0.5 * scaled.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
        return log_prob, (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def divergence(self, params: Tensor, other: Tensor) -> Tensor:
        (mean, log_std), (mean2, log_std2) = self._split(params), self._split(other)
        spread = ((2 * (log_std - log_std2)).exp() + ((mean - mean2) * (-log_std2).exp()).square() - 1) / 2
        return (spread + log_std2 - log_std).sum(-1).clamp_min(0.0)

    def summary(self, params: Tensor) -> Tensor:
        return self._split(params)[0].tanh()

    def to_env(self, actions: Tensor) -> NDArray:
        values = self.middle + self.half * actions.cpu().numpy().astype(np.float64)
        clipped = values.clip(self.low, self.high).reshape(*actions.shape[:-1], *self.space_shape)
        return clipped.astype(self.space_dtype)


def may_be_taken(params: Tensor) -> Tensor:
    """Which actions logits or Q-values `[..., A]` do not exclude, bool of their shape."""
    return params > MASKED / 2


def _normal_icdf(uniforms: Tensor) -> Tensor:
    # Not at 0 itself, where the result is minus infinity.
    return torch.special.ndtri(uniforms.double().clamp(1e-12, 1 - 1e-12)).float()


def build_distribution(space: gym.Space) -> Distribution:
    """The distribution for an action space.

    Raises:
        ValueError: the space is not supported.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(space)
    if isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return MultiCategorical(space)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating) and np.prod(space.shape) > 0:
        return Gaussian(space)
    raise ValueError(
        f"action space {space}: expected Discrete, MultiDiscrete of one dimension, or a Box of floats; "
        "wrap the environment"
    )
