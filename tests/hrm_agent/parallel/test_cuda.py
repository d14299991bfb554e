"""What `device=cuda` adds, on the CPU: `Again` stands in for CUDA graphs, so that only the capture is untested."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import MAZE, make_dqn_trainer, make_ppo, make_trainer, tiny_policy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrm_agent.algos.ppo import PPO
from hrm_agent.cores import HRM, map_state
from hrm_agent.cuda import Accelerator, CudaConfig
from hrm_agent.cuda.collector import CudaCollector
from hrm_agent.cuda.core import AGREEMENT, CoreForward, checked_kernel, disagreement
from hrm_agent.cuda.ppo import CudaPPO
from hrm_agent.environments.double_buffer import Halves, in_halves
from hrm_agent.environments.make import make_vector_env
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.rollout import Rollout
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.parallel.graphs import Again, Replayed
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.encoders import EncoderConfig, build_encoder
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer

EXACT = CudaConfig(bf16=False)


class NoLooks(TorchDispatchMode):
    """Refuses what would make the host wait for the device, and what a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise AssertionError(f"{func} looks at a number")
        return func(*args, **(kwargs or {}))


def silent(text: str) -> None:
    raise AssertionError(text)


def vector(num_envs: int, halves: bool = True, **options: Any) -> Any:
    def make(count: int) -> Any:
        return make_vector_env("DynamicMaze-v0", count, {**MAZE, **options})

    return in_halves(make, num_envs) if halves else make(num_envs)


def fast(config: CudaConfig, num_envs: int = 6, env: Any = None, **policy: Any) -> tuple[CudaCollector, Accelerator]:
    env = vector(num_envs, config.halves) if env is None else env
    made = tiny_policy(env.single_observation_space, **policy)
    accelerator = Accelerator(config, made, silent)
    return accelerator.collector(env, 0, Threads(1)), accelerator


def rollout_of(collector: Collector, steps: int = 8, window: int = 4) -> Rollout:
    return Rollout(steps, collector.env.num_envs, window, collector.env.single_observation_space, collector.state)


def contents(rollout: Rollout) -> dict[str, Tensor]:
    names = [
        "actions",
        "log_probs",
        "values",
        "rewards",
        "episode_start",
        "terminated",
        "truncated",
        "final_values",
        "last_values",
    ]
    states = {f"state{i}": s for i, s in enumerate(rollout.states)}
    return {"obs": rollout.obs, **{name: getattr(rollout, name) for name in names}, **states}


# Replayed


def test_a_replayed_function_changes_what_it_changes_once_a_call_and_writes_one_memory() -> None:
    count, given = torch.zeros(()), torch.zeros(2)

    def function() -> tuple[Tensor, Tensor]:
        count.add_(1)
        return given + count, given * 2

    replayed = Replayed("it", function, Again(), lambda: [count], silent)
    first = replayed()
    assert count == 1  # the calls before the capture left no trace
    assert first[0].tolist() == [1.0, 1.0]
    given.fill_(5)
    second = replayed()
    assert second[0] is first[0]
    assert count == 2
    assert first[0].tolist() == [7.0, 7.0]
    assert first[1].tolist() == [10.0, 10.0]


def test_a_capture_that_fails_is_told_in_one_line_and_leaves_the_plain_call() -> None:
    class Fails(Again):
        def capture(self, function: Callable[[], Any]) -> Any:
            function()
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    count, said = torch.zeros(()), []
    replayed = Replayed("it", lambda: count.add_(1), Fails(), lambda: [count], said.append)
    assert replayed() == 1
    assert replayed() == 2
    assert not replayed.captured
    assert said == ["cuda.graphs: it cannot be captured and runs without (operation not permitted)"]


# Halves


def test_halves_are_the_vector_that_they_make_up() -> None:
    one, two = vector(5, halves=False), vector(5)
    assert isinstance(two, Halves)
    assert [p.num_envs for p in two.parts] == [3, 2]
    np.testing.assert_array_equal(one.reset(seed=7)[0], two.reset(seed=7)[0])
    random, ends = np.random.default_rng(0), 0
    for _ in range(30):
        actions = random.integers(0, 4, 5)
        expected, given = one.step(actions), two.step(actions)
        for a, b in zip(expected[:4], given[:4], strict=True):
            np.testing.assert_array_equal(a, b)
        rows = expected[2] | expected[3]
        ends += rows.sum()
        if rows.any():
            np.testing.assert_array_equal(expected[4]["_episode"], given[4]["_episode"])
            np.testing.assert_array_equal(expected[4]["final_obs"][rows], given[4]["final_obs"][rows])
            for name in ("r", "l", "success"):
                np.testing.assert_array_equal(expected[4]["episode"][name][rows], given[4]["episode"][name][rows])
    assert ends > 5
    saved = one.get_state()
    assert saved.keys() == two.get_state().keys()
    for name, value in two.get_state().items():
        np.testing.assert_array_equal(saved[name], value)
    other = vector(5)
    other.reset(seed=99)
    other.set_state(saved)
    np.testing.assert_array_equal(other.step(actions)[0], one.step(actions)[0])


# Precision and kernel


def test_bf16_leaves_the_dtypes_and_the_weights_as_they_are() -> None:
    torch.manual_seed(0)
    core = HRM(8, 6, H_layers=1, L_layers=1, num_heads=2, inner_size=8, cycle_gradient="all")
    x, state = torch.randn(3, 6, 8, requires_grad=True), core.initial_state(3)
    exact = core(x, state)[0]
    core.forward = CoreForward(core, bf16=True)  # type: ignore[method-assign]
    output, after = core(x, state)
    assert output.dtype == after[1].dtype == torch.float32
    assert 1e-4 < (output - exact).abs().max() < 0.3
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype == torch.float32 for p in core.parameters())
    other = copy.deepcopy(core)
    with torch.no_grad():
        for p in core.parameters():
            p.zero_()
    torch.testing.assert_close(other(x, state)[0], output)  # a copy thinks with weights of its own


def test_a_kernel_is_used_without_gradient_only_and_only_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    core = HRM(8, 6, H_layers=1, L_layers=1, num_heads=2, inner_size=8)

    def bad(x: Tensor, state: Any) -> Any:
        return x, state

    own, least = disagreement(core, bad)
    assert own > 3 * AGREEMENT * least > 0
    forward = CoreForward(core, False, kernel=bad)
    x, state = torch.randn(2, 6, 8), core.initial_state(2)
    with torch.no_grad():
        assert forward(x, state)[0] is x
    assert forward(x, state)[0] is not x
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


# Collection


@pytest.mark.parametrize("carry", ["full", "last_token", "reset"])
@pytest.mark.parametrize("changes", [{}, {"halves": False}, {"graphs": False}], ids=["all", "whole", "no_graphs"])
def test_the_fast_collection_is_the_plain_one(carry: str, changes: dict[str, bool]) -> None:
    quick, _ = fast(CudaConfig(bf16=False, **changes), carry=carry, segments=2)
    policy = tiny_policy(quick.env.single_observation_space, carry=carry, segments=2)
    plain = Collector(vector(6, halves=False), policy, 0, Threads(1))
    one, other = rollout_of(plain), rollout_of(quick)
    for _ in range(2):
        plain.collect(one)
        quick.collect(other)
        for name, expected in contents(one).items():
            torch.testing.assert_close(contents(other)[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert one.truncated.any()
    assert (one.final_values != 0).any()
    assert (quick.frames, list(quick.episodes), quick.segments) == (plain.frames, list(plain.episodes), 2.0)
    saved = quick.tensors()
    assert saved.keys() == plain.tensors().keys()
    for name, expected in plain.tensors().items():
        torch.testing.assert_close(saved[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_decisions_and_minibatch_steps_look_at_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    collector, accelerator = fast(CudaConfig())
    rollout = rollout_of(collector)
    collector.collect(rollout)
    collector._parts[0].t.zero_()
    with NoLooks():
        collector._parts[0]._body()
        collector._judge._body()
    ppo, _, _ = make_ppo()
    algo = accelerator.algorithm(PPO(collector.policy, ppo.config, Threads(1), 0))
    algo.update(rollout, 0.0)
    with NoLooks():
        algo._step()
    with pytest.raises(AssertionError, match="looks at a number"), NoLooks():
        torch.ones(()).item()


def test_logits_that_are_not_finite_end_the_collection() -> None:
    collector, _ = fast(EXACT)
    with torch.no_grad():
        collector.policy.policy_head.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteNumbers, match="the policy's logits are not finite"):
        collector.collect(rollout_of(collector))


def test_a_decision_of_everybody_is_the_policys_and_stays_as_it_was() -> None:
    collector, _ = fast(EXACT)
    obs, state, start = collector.obs, collector.state, collector.episode_start
    first = collector._decide(obs, state, start)
    kept = map_state(Tensor.clone, first.state)
    expected = collector.policy.step(obs, state, start)
    torch.testing.assert_close(first.logits, expected.logits)
    collector._decide(obs, first.state, ~start)
    assert all(torch.equal(a, b) for a, b in zip(first.state, kept, strict=True))


# Update


@pytest.mark.parametrize("extra", [{}, {"refresh_states": True, "weight_decay": 0.1, "anneal": False}])
def test_the_replayed_update_is_ppos(extra: dict[str, Any]) -> None:
    settings = {"epochs": 2, "minibatch_windows": 4, "learning_rate": 1e-2, **extra}
    plain, collector, rollout = make_ppo(**settings)
    other, _, _ = make_ppo(**settings)
    quick = Accelerator(EXACT, other.policy, silent).algorithm(other)
    assert isinstance(quick, CudaPPO)
    for progress in (0.0, 0.5):
        collector.collect(rollout)
        expected = plain.update(copy.deepcopy(rollout), progress)  # refreshed states are written into a rollout
        measured = quick.update(rollout, progress)
        assert measured.keys() == expected.keys()
        for name in expected:
            assert measured[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
        for a, b in zip(quick.parameters, plain.parameters, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert quick.step.captured


def test_a_gradient_that_is_not_finite_changes_nothing_from_its_minibatch_on() -> None:
    ppo, collector, rollout = make_ppo(minibatch_windows=4)
    collector.collect(rollout)
    algo = Accelerator(EXACT, ppo.policy, silent).algorithm(ppo)
    algo.update(rollout, 0.0)  # captured
    before = [p.detach().clone() for p in algo.parameters]
    rollout.rewards[:] = float("inf")
    with pytest.raises(NonFiniteNumbers, match="gradient norm is"):
        algo.update(rollout, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(algo.parameters, before, strict=True))


# A whole run


def _on_cpu(trainer: Trainer, console: Console | None) -> Accelerator:
    return Accelerator(CudaConfig(), trainer.policy, lambda _: None)


def accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU as if it were a CUDA device."""
    monkeypatch.setattr("hrm_agent.training.trainer.build", lambda c, device, make, count: in_halves(make, count))
    monkeypatch.setattr(Trainer, "_accelerator", _on_cpu)


@pytest.mark.parametrize("make", [make_trainer, make_dqn_trainer])
def test_an_accelerated_run_resumes_where_it_was_and_goes_on_without(
    make: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerate(monkeypatch)
    whole = make(tmp_path / "whole")
    whole.run(Console())
    part = make(tmp_path / "part", total_steps=64)
    part.run(Console())
    resumed = make(tmp_path / "part", total_steps=128)
    resumed.resume()
    assert resumed.frames == 64
    if make is make_trainer:
        assert isinstance(resumed.algo, CudaPPO)
    monkeypatch.undo()
    plain = make(tmp_path / "part", total_steps=128)
    plain.resume()  # a checkpoint does not know of halves and graphs
    plain.run(Console())
    assert (plain.frames, whole.frames) == (128, 128)


def test_the_switches_are_settings() -> None:
    values = resolve(compose_config(["cuda.graphs=false", "cuda.triton=true"], "train"))
    assert settings(values)[0].cuda == CudaConfig(graphs=False, triton=True)
    values["cuda"]["graph"] = True
    with pytest.raises(ValueError, match=r"cuda.graph=True: no such setting"):
        settings(values)
    values["cuda"] = {"bf16": "yes"}
    with pytest.raises(ValueError, match=r"cuda.bf16='yes': expected bool"):
        settings(values)
    values.pop("cuda")  # a run of before
    assert settings(values)[0].cuda == CudaConfig()


def test_adaptive_stopping_goes_without_graphs_and_says_so() -> None:
    said: list[str] = []
    policy = tiny_policy(stop="latent_change", stop_threshold=0.1, segments=2)
    assert Accelerator(CudaConfig(), policy, said.append).capture is None
    assert said == ["cuda.graphs: not used with stop=latent_change, whose batches change their size"]
