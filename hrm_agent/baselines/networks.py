"""Networks for small grids, as Stable-Baselines3's features extractors."""

from __future__ import annotations

from itertools import pairwise

import gymnasium as gym
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class GridCNN(BaseFeaturesExtractor):
    """Planes `[N, K, H, W]` -> features `[N, features]`.

    3x3 convolutions that keep the size of the grid, the last one with stride 2, then one linear layer, all with
    ReLU. Stable-Baselines3's own network (Mnih et al. 2015, doi 10.1038/nature14236) needs 36x36 pixels.

    Args:
        observation_space: of planes `(K, H, W)`.
        channels: of every convolution.
        conv_layers: how many, 1 or more.
        features: width of the result.
    """

    def __init__(
        self, observation_space: gym.spaces.Box, channels: int = 32, conv_layers: int = 2, features: int = 256
    ) -> None:
        super().__init__(observation_space, features)
        planes, height, width = observation_space.shape
        layers: list[nn.Module] = []
        for layer in range(conv_layers):
            stride = 2 if layer == conv_layers - 1 else 1
            layers += [nn.Conv2d(channels if layer else planes, channels, 3, stride, padding=1), nn.ReLU()]
        cells = -(-height // 2) * -(-width // 2)
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * cells, features), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        return self.network(observations)


class GridMLP(BaseFeaturesExtractor):
    """One-hot grids, flat `[N, K*H*W]` -> features `[N, features]`: linear layers, each with ReLU.

    Args:
        observation_space: of one flat observation `(K*H*W,)`.
        features: width of every layer and of the result.
        layers: how many, 1 or more.
    """

    def __init__(self, observation_space: gym.spaces.Box, features: int = 256, layers: int = 1) -> None:
        super().__init__(observation_space, features)
        widths = [observation_space.shape[0]] + [features] * layers
        self.network = nn.Sequential(*(module for a, b in pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())))

    def forward(self, observations: Tensor) -> Tensor:
        return self.network(observations)
