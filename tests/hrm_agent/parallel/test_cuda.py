"""A core in bfloat16 or by a kernel, as `device=cuda` computes it, on the CPU."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from hrm_agent.cores import HRM
from hrm_agent.policies.encoders import EncoderConfig, build_encoder
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.recurrence import path_of, run_segments, use
from hrm_agent.recurrence.cuda import AGREEMENT, CUDACore, checked_kernel, disagreement, use_cuda


def test_bf16_leaves_the_dtypes_and_the_weights_as_they_are() -> None:
    torch.manual_seed(0)
    core = HRM(8, 6, H_layers=1, L_layers=1, num_heads=2, inner_size=8, cycle_gradient="all")
    x, state = torch.randn(3, 6, 8, requires_grad=True), core.initial_state(3)
    exact = core(x, state)[0]
    output, after = run_segments(core, x, state, 1, CUDACore(bf16=True))
    assert output.dtype == after[1].dtype == torch.float32
    assert 1e-4 < (output - exact).abs().max() < 0.3
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype == torch.float32 for p in core.parameters())


def test_a_kernel_is_used_without_gradient_only_and_only_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    core = HRM(8, 6, H_layers=1, L_layers=1, num_heads=2, inner_size=8)

    def bad(x: Tensor, state: Any) -> Any:
        return x, state

    own, least = disagreement(core, bad)
    assert own > 3 * AGREEMENT * least > 0
    backend = CUDACore(False, kernel=lambda x, state, segments: bad(x, state))
    x, state = torch.randn(2, 6, 8), core.initial_state(2)
    with torch.no_grad():
        assert run_segments(core, x, state, 1, backend)[0] is x
    assert run_segments(core, x, state, 1, backend)[0] is not x
    said: list[str] = []
    assert checked_kernel(core, said.append) is None  # no triton, or a width that it has no kernel for
    assert len(said) == 1
    assert said[0].startswith("cuda.triton: not used (")


def test_lookups_that_a_graph_can_hold_are_the_usual_ones() -> None:
    grid = gym.spaces.Box(0, 5, (5, 7, 2), np.uint8)
    choices = gym.spaces.MultiDiscrete([3, 4], start=[1, 0])
    space = gym.spaces.Dict({"grid": grid, "choices": choices, "one": gym.spaces.Discrete(3, start=-1)})
    encoder = build_encoder(space, 8, EncoderConfig(patch_size=2))
    space.seed(0)
    obs = {key: torch.stack([torch.as_tensor(s.sample()) for _ in range(6)]) for key, s in space.spaces.items()}
    weights = list(encoder.parameters())
    usual = encoder(obs)
    gradients = torch.autograd.grad(usual.square().sum(), weights)
    for part in encoder.modules():
        part.graphable = True  # type: ignore[assignment]
    tokens = encoder(obs)
    torch.testing.assert_close(tokens, usual)
    for one, other in zip(torch.autograd.grad(tokens.square().sum(), weights), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_it_stays_whatever_computes_the_stacks() -> None:
    grid, config = gym.spaces.Box(0, 5, (5, 7), np.uint8), PolicyConfig(core="trm", hidden_size=16, carry="reset")
    policy = Policy(config, grid, gym.spaces.Discrete(4))
    backend = use_cuda(policy, bf16=True, triton=False, say=print)
    assert use(policy, "plain") == "plain"
    assert policy.backend is backend
    assert path_of(policy) == "plain"


def test_a_kernel_in_bfloat16_is_not_used_where_that_is_excluded() -> None:
    grid, config = gym.spaces.Box(0, 5, (5, 7), np.uint8), PolicyConfig(core="trm", hidden_size=16, carry="reset")
    said: list[str] = []
    backend = use_cuda(Policy(config, grid, gym.spaces.Discrete(4)), bf16=False, triton=True, say=said.append)
    assert backend.kernel is None
    assert said == ["cuda.triton: not used (its products are in bfloat16, which cuda.bf16=false excludes)"]
