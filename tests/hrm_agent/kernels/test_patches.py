"""Grids by the kernels: the tokens of eager torch, the agent found where it finds it, and unknown ids refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.policies.encoders import EncoderConfig, GridEncoder
from hrm_agent.recurrence.cpu import CPUKernels

pytestmark = pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")


def results(encoder: GridEncoder, obs: Tensor, path: str, threads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the gradient of the table, and where the agent is."""
    encoder.backend = None if path == "plain" else CPUKernels(path)
    if encoder.backend is not None:
        encoder.backend.threads = threads
    tokens = encoder(obs)
    down = torch.arange(tokens.numel()).view_as(tokens).sin().to(tokens.dtype)
    (gradient,) = torch.autograd.grad((tokens * down).sum(), encoder.embedding)
    return tokens.detach(), gradient, encoder.token_of(obs, 3)


@given(
    sides=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    crop=st.integers(0, 2),
    patch=st.integers(1, 8),
    lead=st.lists(st.integers(0, 5), min_size=1, max_size=2),
    size=st.sampled_from([16, 48]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_tokens_and_gradients_are_those_of_torch(
    sides: tuple[int, int], crop: int, patch: int, lead: list[int], size: int, seed: int
) -> None:
    assume(min(sides) > 2 * crop)
    torch.manual_seed(seed)
    encoder = GridEncoder(gym.spaces.Box(0, 5, sides, np.uint8), size, EncoderConfig(crop=crop, patch_size=patch))
    obs = torch.randint(0, 6, (*lead, *sides), dtype=torch.uint8)
    plain, fused = results(encoder, obs, "plain"), results(encoder, obs, "fused")
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused[1], plain[1], rtol=1e-5, atol=1e-4)
    assert torch.equal(fused[2], plain[2])
    for threads in (2, 5):
        divided = results(encoder, obs, "fused", threads)
        assert torch.equal(divided[0], fused[0])
        torch.testing.assert_close(divided[1], fused[1], rtol=1e-5, atol=1e-4)


def test_a_view_of_observations_is_read_as_it_is() -> None:
    encoder = GridEncoder(gym.spaces.Box(0, 5, (5, 5), np.uint8), 16, EncoderConfig(patch_size=2))
    wide = torch.randint(0, 6, (4, 5, 9), dtype=torch.uint8)
    encoder.backend = CPUKernels("fused")
    assert torch.equal(encoder(wide[..., 2:7]), encoder(wide[..., 2:7].contiguous()))


def test_an_unknown_id_reads_nothing() -> None:
    encoder = GridEncoder(gym.spaces.Box(0, 5, (5, 5), np.uint8), 16, EncoderConfig(patch_size=2))
    encoder.backend = CPUKernels("fused")
    with pytest.raises(ValueError, match="an observation holds id 200: expected ids below 6"):
        encoder(torch.full((1, 5, 5), 200, dtype=torch.uint8))


def test_what_the_kernels_do_not_know_goes_the_plain_way() -> None:
    for space, size in (
        (gym.spaces.Box(0, 5, (5, 5, 2), np.uint8), 16),  # channels
        (gym.spaces.Box(0, 5, (5, 5), np.int64), 16),  # another type
        (gym.spaces.Box(0, 5, (5, 5), np.uint8), 24),  # not a multiple of 16
    ):
        encoder = GridEncoder(space, size, EncoderConfig())
        obs = torch.as_tensor(np.stack([space.sample() for _ in range(3)]))
        plain = encoder(obs)
        encoder.backend = CPUKernels("fused")
        assert torch.equal(encoder(obs), plain)
