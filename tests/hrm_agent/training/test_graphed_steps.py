"""Runs whose step functions are wrapped as `device=cuda` wraps them, on the CPU: only the capture is untested."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.imitation import DAggerConfig
from hrm_agent.algos.ppo import PPO, PPOConfig
from hrm_agent.environments.make import make_vector_env
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.rollout import Rollout
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.parallel.cuda import CudaConfig
from hrm_agent.parallel.graphs import EagerReplay, GraphedCallable, Wrap, graph_wrapper
from hrm_agent.parallel.threads import Threads
from hrm_agent.tensors import trees
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer, wrap_for
from tiny import MAZE, QUICK, make_dqn_trainer, make_ppo, make_trainer, tiny_policy


class HostReads(TorchDispatchMode):
    """Refuses what would make the host wait for the device, and what a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise AssertionError(f"{func} gives a number to the host")
        return func(*args, **(kwargs or {}))


def silent(text: str) -> None:
    raise AssertionError(text)


def wrapper() -> Wrap:
    return graph_wrapper(torch.device("cpu"), silent)


def collector(wrap: Wrap | None, **policy: Any) -> Collector:
    env = make_vector_env("DynamicMaze-v0", 6, MAZE)
    return Collector(env, tiny_policy(env.single_observation_space, **policy), 0, Threads(1), wrap=wrap)


def rollout_of(collector: Collector, steps: int = 8, window: int = 4) -> Rollout:
    return Rollout(steps, 6, window, collector.env.single_observation_space, collector.state)


def contents(rollout: Rollout) -> dict[str, Tensor]:
    return {name: t for key, value in vars(rollout).items() if not isinstance(value, int)
            for name, t in trees.flatten(key, value).items()}  # fmt: skip


def graphed_ppo(ppo: PPO) -> PPO:
    return PPO(ppo.policy, ppo.config, ppo.threads, 0, wrap=wrapper())


@pytest.mark.thorough
@pytest.mark.parametrize("carry", ["full", "last_token", "reset", "output"])
def test_a_graphed_collection_is_the_plain_one(carry: str) -> None:
    graphed, plain = (collector(wrap, carry=carry, segments=2) for wrap in (wrapper(), None))
    one, other = rollout_of(plain), rollout_of(graphed)
    for _ in range(3):
        plain.collect(one)
        graphed.collect(other)
        for name, expected in contents(one).items():
            assert torch.equal(contents(other)[name], expected), name
    assert one.truncated.any()
    assert (one.final_values != 0).any()
    assert (graphed.frames, list(graphed.episodes), graphed.segments) == (plain.frames, list(plain.episodes), 2.0)
    for name, expected in plain.tensors().items():
        assert torch.equal(graphed.tensors()[name], expected), name
    assert graphed.act.captured  # type: ignore[attr-defined]


def test_the_value_after_a_rollout_leaves_the_carry_as_it_was() -> None:
    graphed = collector(wrapper())
    rollout = rollout_of(graphed)
    graphed.collect(rollout)
    for kept, stored in zip(graphed.state, rollout.states, strict=True):
        assert torch.equal(kept, stored[-1])
    before = trees.clone(graphed.state)
    graphed.act(graphed.obs, graphed.state, ~graphed.episode_start, graphed._draw_uniforms())
    assert all(torch.equal(a, b) for a, b in zip(before, graphed.state, strict=True))


@pytest.mark.parametrize("carry", ["full", "gate", "last_token", "output"])
def test_decisions_and_gradients_give_no_number_to_the_host(carry: str) -> None:
    ppo, graphed, rollout = make_ppo({"segments": 2, "carry": carry})
    for encoder in graphed.policy.modules():
        encoder.graphable = True  # type: ignore[assignment]
    graphed.collect(rollout)
    windows = rollout.windows(*rollout.advantages(0.9, 0.9))
    uniforms = graphed._draw_uniforms()
    with HostReads():
        with torch.no_grad():
            graphed._act(graphed.obs, graphed.state, graphed.episode_start, uniforms)
        ppo._gradient(windows, torch.tensor(0.1))
    with pytest.raises(AssertionError, match="gives a number to the host"), HostReads():
        torch.ones(()).item()


def test_logits_that_are_not_finite_end_a_graphed_collection() -> None:
    graphed = collector(wrapper())
    with torch.no_grad():
        graphed.policy.policy_head.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteNumbers, match="the policy's logits are not finite"):
        graphed.collect(rollout_of(graphed))


@pytest.mark.parametrize("extra", [{}, {"refresh_states": True, "weight_decay": 0.1, "anneal": False}])
def test_a_graphed_update_is_the_plain_one(extra: dict[str, Any]) -> None:
    changes = {"epochs": 2, "minibatch_windows": 4, "learning_rate": 1e-2, **extra}
    plain, data, rollout = make_ppo(**changes)
    graphed = graphed_ppo(make_ppo(**changes)[0])
    for progress in (0.0, 0.5):
        data.collect(rollout)
        expected = plain.update(copy.deepcopy(rollout), progress)  # refreshed states are written into a rollout
        assert graphed.update(rollout, progress) == expected
        assert all(torch.equal(a, b) for a, b in zip(graphed.parameters, plain.parameters, strict=True))
    assert graphed.gradient.captured  # type: ignore[attr-defined]


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    ppo, data, rollout = make_ppo(minibatch_windows=4)
    data.collect(rollout)
    graphed = graphed_ppo(ppo)
    graphed.update(rollout, 0.0)
    before = [p.detach().clone() for p in graphed.parameters]
    rollout.rewards[:] = float("inf")
    with pytest.raises(NonFiniteNumbers, match="gradient norm is"):
        graphed.update(rollout, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(graphed.parameters, before, strict=True))


def make_imitation_trainer(folder: Path, **changes: Any) -> Trainer:
    return make_trainer(folder, kind=DAggerConfig, **changes)


def graph_trainers(monkeypatch: pytest.MonkeyPatch, capture: type[EagerReplay] = EagerReplay) -> list[str]:
    """From now on runs on the CPU are wrapped; returns what they say about it."""
    said: list[str] = []

    def accelerate(trainer: Trainer, algo: Any, say: Any) -> Wrap:
        return lambda name, function: GraphedCallable(name, function, capture(), said.append)

    monkeypatch.setattr(Trainer, "_accelerate", accelerate)
    return said


@pytest.mark.thorough
@pytest.mark.parametrize("make", [make_trainer, make_dqn_trainer, make_imitation_trainer])
def test_a_graphed_run_is_the_plain_one_and_is_resumed_by_it(
    make: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(tmp_path / "plain")
    plain.run(Console())
    assert graph_trainers(monkeypatch) == []
    graphed = make(tmp_path / "graphed", total_steps=64)
    assert isinstance(graphed.collector.decide, GraphedCallable)
    graphed.run(Console())
    monkeypatch.undo()
    resumed = make(tmp_path / "graphed")
    resumed.resume()
    assert resumed.frames == 64
    if make is make_dqn_trainer:  # the rate of random actions and the learning rate follow the length of a run
        return
    graph_trainers(monkeypatch)
    whole = make(tmp_path / "whole")
    whole.run(Console())
    for name, expected in plain.tensors().items():
        assert torch.equal(whole.tensors()[name], expected), name


def test_a_run_whose_captures_fail_says_so_in_lines_and_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(EagerReplay):
        def __call__(self, function: Callable[[], Any]) -> Any:
            raise RuntimeError("no graph here\nat all")

    plain = make_trainer(tmp_path / "plain")
    plain.run(Console())
    said = graph_trainers(monkeypatch, Fails)
    other = make_trainer(tmp_path / "other")
    other.run(Console())
    reason = "cannot be captured and runs without (no graph here)"
    assert said == [f"cuda.graphs: a decision {reason}", f"cuda.graphs: the gradient of a minibatch {reason}"]
    assert all(torch.equal(a, b) for a, b in zip(plain.algo.parameters, other.algo.parameters, strict=True))


def test_what_cannot_be_graphed_is_said() -> None:
    said: list[str] = []
    waits = tiny_policy(stop="latent_change", stop_threshold=0.1, segments=2)
    policy = tiny_policy(core_options=QUICK)
    assert wrap_for(waits, PPOConfig(), Threads(1), said.append) is None
    assert wrap_for(policy, PPOConfig(), Threads(2), said.append) is None
    assert wrap_for(policy, DQNConfig(), Threads(1), said.append) is not None
    assert said == [
        "cuda.graphs: not used with stop=latent_change, whose batches change their size",
        "cuda.graphs: not used with threads=2; expected 1, as threads=auto gives on a GPU",
        "cuda.graphs: of the decisions alone; only algo=ppo has them for its update too",
    ]
    assert wrap_for(policy, PPOConfig(), Threads(1), silent) is not None
    assert policy.encoder.graphable


def test_the_switches_are_settings() -> None:
    values = resolve(compose_config(["cuda.graphs=false", "cuda.triton=true"], "train"))
    assert settings(values)[0].cuda == CudaConfig(graphs=False, triton=True)
    values["cuda"]["graph"] = True
    with pytest.raises(ValueError, match=r"cuda.graph=true: no such setting"):
        settings(values)
    values["cuda"] = {"bf16": "yes"}
    with pytest.raises(ValueError, match=r"cuda.bf16='yes': expected true or false"):
        settings(values)
    values.pop("cuda")  # a run of before
    assert settings(values)[0].cuda == CudaConfig()


def test_the_switch_of_two_halves_of_the_environments_is_ignored() -> None:
    values = resolve(compose_config(["cuda.halves=false", "cuda.bf16=false"], "train"))
    assert settings(values)[0].cuda == CudaConfig(bf16=False)
    before = {**values, "cuda": {"bf16": False, "halves": True}}  # of a run of before
    assert settings(resolve(OmegaConf.create(before)))[0].cuda == CudaConfig(bf16=False)
