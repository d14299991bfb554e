"""Frame stacking: a policy without memory sees the last n observations (Mnih et al. 2015, the DQN paper)."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

PolicyState = tuple[Tensor, ...]


class FrameStack:
    """The last n grids of ids as the channels of one grid, the newest first; earlier ones are part of the state.

    At an episode's start the first observation stands for those before it. Every frame has embeddings of its own, as
    the encoder has for every channel.

    Args:
        space: of a single observation, a grid of ids `(H, W)` or `(H, W, C)`.
        frames: n, 2 or more.

    Attributes:
        space: of the stacked observation, `(H, W, n * C)`.

    Raises:
        ValueError: other observations.
    """

    def __init__(self, space: gym.Space, frames: int) -> None:
        grid = isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.integer)
        if not grid or len(space.shape or ()) not in (2, 3):
            raise ValueError(f"encoder.frames={frames} stacks grids of ids, (H, W) or (H, W, C), got {space}; use 1")
        assert isinstance(space, gym.spaces.Box)
        self.frames, self.shape = frames, space.shape
        self.low, self.high = int(space.low.min()), int(space.high.max())
        channels = frames * (space.shape[2] if len(space.shape) == 3 else 1)
        self.space = gym.spaces.Box(self.low, self.high, (*space.shape[:2], channels), space.dtype.type)

    def initial(self, batch_size: int, device: torch.device) -> Tensor:
        """float[B, n - 1, *shape], the frames before any step; ids as floats, as states are stored."""
        return torch.full((batch_size, self.frames - 1, *self.shape), float(self.low), device=device)

    def stack(self, obs: Tensor, state: PolicyState, episode_start: Tensor) -> tuple[Tensor, PolicyState, PolicyState]:
        """Observations `[k, B, *shape]` of k steps, the state before them and `episode_start` bool `[k, B]`.

        Returns:
            The stacked observations int64 `[k, B, H, W, n * C]`; the carried state without the earlier frames; and
            those after the last step, a tuple of one tensor.
        """
        *carried, past = state
        before, stacked = past.nan_to_num().clamp(self.low, self.high).long(), []
        for now, start in zip(obs.long().unbind(0), episode_start.unbind(0), strict=True):
            first = start.view(-1, *[1] * (before.dim() - 1))
            frames = torch.cat([now[:, None], torch.where(first, now[:, None], before)], dim=1)
            before = frames[:, :-1]
            if len(self.shape) == 3:
                frames = frames.movedim(1, -2).flatten(-2)
            else:
                frames = frames.movedim(1, -1)
            stacked.append(frames)
        return torch.stack(stacked), tuple(carried), (before.to(past.dtype),)
