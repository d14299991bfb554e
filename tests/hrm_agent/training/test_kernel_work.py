"""`kernel=auto` takes what is fastest and right, whatever it is, and leaves no trace of having measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrm_agent import recurrence
from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.benchmarks.networks import build_run
from hrm_agent.cores.blocks import BlockConfig, BlockStack
from hrm_agent.parallel.processes import Processes
from hrm_agent.parallel.threads import Threads, instruction_set
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import cpu as windows
from hrm_agent.recurrence import path_of
from hrm_agent.recurrence.agreement import Outputs, agrees
from hrm_agent.recurrence.kernel_timing import FEW_ROUNDS, MOST_ROUNDS, Choice, Job, Size, measure
from hrm_agent.supervised.kernel_work import measure_model
from hrm_agent.tensors.trees import to_tensors
from hrm_agent.training import kernel_work
from hrm_agent.training.kernel_work import (
    Passes,
    PolicyWork,
    choose_for_playing,
    measure_policy,
    passes_of,
    path_of_training,
)
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from puzzles import make_model
from runs import assert_equal_bits, everything
from tiny import DQN_SETTINGS, fitting, make_dqn_trainer, make_trainer

needs_kernels = pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")


class Clock:
    """Stands still but for what is done; notes who did it."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now, self.calls = seconds, 0.0, []  # type: ignore[var-annotated]

    def __call__(self) -> float:
        return self.now

    def run(self, stack: nn.Module, size: Size) -> None:
        self.calls.append((path_of(stack), size))
        self.now += self.seconds[path_of(stack)] * size.work


def stack() -> BlockStack:
    torch.manual_seed(0)
    return BlockStack(1, 16, 4, (2, 2), BlockConfig(num_heads=1, mixing="conv", inner_size=16))


def same(judged: nn.Module, precision: str) -> Outputs:
    return {"x": torch.ones(3)}


def choice(
    clock: Clock,
    outputs: Callable[[Any, str], Outputs] = same,
    paths: Sequence[str] = ("plain", "fused"),
    rows: int = 64,
) -> Choice:
    return measure(stack(), paths, [Job(clock.run, Size(2, 8, rows), 1.0, 2)], outputs, clock)


# What is taken


@needs_kernels
def test_the_fastest_is_taken_if_it_is_worth_it() -> None:
    made = choice(Clock(plain=1e-6, fused=5e-7))
    assert (made.path, made.wrong) == ("fused", ())
    assert made.ratios == {"fused": pytest.approx(2.0)}
    assert str(made) == "kernel: fused, 2.0 times the plain path"
    slower = choice(Clock(plain=1e-6, fused=2e-6))
    assert (slower.path, str(slower)) == ("plain", "kernel: plain (fused 0.5 times as fast)")
    assert choice(Clock(plain=1e-6, fused=0.97e-6)).path == "plain"  # not worth its while


@needs_kernels
def test_a_path_that_computes_something_else_is_not_taken_however_fast() -> None:
    def outputs(judged: nn.Module, precision: str) -> Outputs:  # type: ignore[type-arg, unused-ignore]
        return {"x": torch.ones(3) * (1.001 if path_of(judged) == "fused" else 1.0)}

    made = choice(Clock(plain=1e-6, fused=1e-7), outputs)
    assert (made.path, made.wrong) == ("plain", ("fused",))
    assert str(made) == "kernel: plain (fused gives other numbers)"


@needs_kernels
def test_what_rounding_explains_is_no_other_function() -> None:
    def outputs(judged: nn.Module, precision: str) -> Outputs:
        exact = next(judged.parameters()).dtype == torch.float64
        return {"x": torch.ones(3) + (1e-4 if exact else 0.0) + (1e-3 if path_of(judged) == "fused" else 0.0)}

    assert choice(Clock(plain=1e-6, fused=1e-7), outputs).path == "fused"


# How long it takes


@needs_kernels
def test_paths_take_turns_and_a_clear_winner_ends_it() -> None:
    clock = Clock(plain=1e-6, fused=2e-7)
    choice(clock)
    whole = [path for path, size in clock.calls if size == Size(2, 8, 64)]
    assert whole == ["plain", "fused"] * FEW_ROUNDS
    close = Clock(plain=1e-6, fused=9e-7)
    choice(close)
    assert [path for path, size in close.calls if size == Size(2, 8, 64)] == ["plain", "fused"] * MOST_ROUNDS


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 4096])
@pytest.mark.parametrize("seconds", [1e-8, 1e-6, 1e-4, 1e-3])
def test_it_ends_in_time(seconds: float, rows: int) -> None:
    clock = Clock(plain=seconds, fused=seconds * 1.1)
    choice(clock, rows=rows)
    assert clock.now < 1.0
    assert {path for path, _ in clock.calls} == {"plain", "fused"}


@needs_kernels
def test_where_the_smallest_piece_is_too_long_every_path_has_one_turn() -> None:
    clock = Clock(plain=3.0, fused=2.0)
    assert choice(clock).path == "fused"
    first, *turns = clock.calls
    assert first == ("plain", Size(1, 1, 2))  # fills caches
    assert turns == [("plain", Size(1, 1, 2)), ("fused", Size(1, 1, 2))]


@needs_kernels
def test_jobs_count_as_often_as_they_are_done() -> None:
    quick, slow = Clock(plain=1e-5, fused=1e-6), Clock(plain=1e-6, fused=1e-5)
    for jobs, path in (((9.0, 1.0), "fused"), ((1.0, 9.0), "plain")):
        clock = Clock()

        def run(seconds: dict[str, float], clock: Clock = clock) -> Callable[[nn.Module, Size], None]:
            def once(module: nn.Module, size: Size) -> None:
                clock.now += seconds[path_of(module)] * size.work

            return once

        both = [Job(run(c.seconds), Size(1, 1, 8), t) for c, t in zip((quick, slow), jobs, strict=True)]
        assert measure(stack(), ["plain", "fused"], both, same, clock).path == path


def test_an_iteration_is_what_the_algorithms_compute() -> None:
    assert passes_of(PPOConfig(refresh_states=True)) == [
        Passes(17, 0, 128),
        Passes(4.0, 16, 32, gradient=True),
        Passes(0.0, 16, 128),
    ]
    settings = {**DQN_SETTINGS, "train_steps": 1, "each_segment": True}
    assert passes_of(DQNConfig(**settings))[1] == Passes(2, 1, 4, gradient=True, each_segment=True, divisible=False)


# A policy's own work


def observations(name: str = "DynamicMaze-v0", overrides: Sequence[str] = ()) -> tuple[Policy, Any, Any]:
    small = ["algo.num_envs=16", "algo.minibatch_windows=16", "core.hidden_size=16", "core.inner_size=16"]
    parts = build_run("default", [f"env={name}", *small, *overrides])
    return parts.policy, parts.algo, to_tensors(parts.env.reset(seed=0)[0])


@needs_kernels
@pytest.mark.parametrize(
    "overrides", [[], ["core=hrm", "carry=gate"], ["carry=output", "segments=2", "stop=policy_kl"]]
)
def test_the_kernels_of_this_machine_agree_and_measuring_leaves_no_trace(overrides: list[str]) -> None:
    policy, algo, obs = observations(overrides=overrides)
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    random, config, segments = torch.get_rng_state(), policy.config, policy.segments
    made = measure_policy(policy, recurrence.candidates(policy, allow_bf16=True), passes_of(algo), obs, Threads(2))
    assert set(made.ratios) >= {"fused"}
    assert made.wrong == ()
    work = PolicyWork(obs, Threads(1))
    assert agrees(policy, "fused", lambda p, precision: work.outputs(p, precision, 8, True))
    assert torch.equal(random, torch.get_rng_state())
    assert_equal_bits(before, dict(policy.state_dict()))
    assert (policy.config, policy.segments) == (config, segments)
    assert all(p.grad is None for p in policy.parameters())
    assert path_of(policy) == "plain"


@needs_kernels
def test_a_slow_kernel_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = windows.run_window

    def slow(*given: Any) -> Any:
        time.sleep(0.05)
        return right(*given)

    monkeypatch.setattr(windows, "run_window", slow)
    policy, algo, obs = observations()
    made = measure_policy(policy, ["plain", "fused"], passes_of(algo), obs, Threads(1))
    assert made.path == "plain"
    assert made.ratios["fused"] < 1


@needs_kernels
@pytest.mark.parametrize("part", ["output", "state", "gradient"])
def test_a_wrong_kernel_is_not_taken(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = windows.run_window

    def wrong(plan: Any, rule: Any, thinking: Any, tokens: Tensor, *given: Any) -> Any:
        thought = right(plan, rule, thinking, tokens, *given)
        if part == "output":
            return thought._replace(reads=thought.reads * 1.001)
        if part == "state":
            return thought._replace(state=(thought.state[0], thought.state[1] + 1e-3))
        return thought._replace(reads=thought.reads + 1e-3 * (thought.reads - thought.reads.detach()))

    policy, _, obs = observations()
    work = PolicyWork(obs, Threads(1))

    def outputs(judged: Policy, precision: str) -> Outputs:
        return work.outputs(judged, precision, 8, with_gradient=True)

    assert agrees(policy, "fused", outputs)
    monkeypatch.setattr(windows, "run_window", wrong)
    assert not agrees(policy, "fused", outputs)


@needs_kernels
def test_what_auto_takes_for_the_default_policy_is_not_slower_than_the_plain_path() -> None:
    """Held by ratios within one run: paths take turns, the best of their rounds counts, and the margin is wide."""
    parts = build_run("default")
    policy, obs, threads = parts.policy, to_tensors(parts.env.reset(seed=0)[0]), Threads(1)
    chosen = measure_policy(policy, recurrence.candidates(policy, allow_bf16=True), passes_of(parts.algo), obs, threads)
    assert not chosen.wrong, str(chosen)
    work, window = PolicyWork(obs, threads), Passes(1, 8, 64, gradient=True)
    best = {path: float("inf") for path in ("plain", chosen.path)}
    for _ in range(6):
        for path in best:
            recurrence.use(policy, path)
            began = time.process_time()  # one thread: what others do on the machine does not count
            work.run(policy, window, Size(1, 8, 64))
            best[path] = min(best[path], time.process_time() - began)
    assert best[chosen.path] <= 1.15 * best["plain"], f"{chosen}, and then {best}"


# Runs


class Told(Console):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def measuring(trainer: Trainer, path: str) -> Trainer:
    """A trainer that measures, and takes `path` whatever comes out."""
    own = trainer.measure_kernel

    def measured(paths: Sequence[str]) -> Choice:
        made = own(paths)
        assert "fused" not in made.wrong  # bfloat16 can be too coarse: its rounding alone changes small gradients
        return Choice(path, {"fused": 2.0})

    trainer.measure_kernel = measured  # type: ignore[method-assign]
    return trainer


@needs_kernels
@pytest.mark.parametrize("make", [make_trainer, make_dqn_trainer])
def test_a_run_that_measured_is_the_run_that_was_given_the_kernel(make: Callable[..., Trainer], tmp_path: Path) -> None:
    ends = {}
    for kernel in ("fused", "auto"):
        trainer = make(tmp_path / kernel, kernel=kernel, **fitting())
        told = Told()
        (measuring(trainer, "fused") if kernel == "auto" else trainer).run(told)
        ends[kernel] = everything(trainer)
        assert trainer.agent().info["kernel"] == "fused"
        assert trainer.agent().info["instruction_set"] == instruction_set()
        networks = trainer.networks()
        assert len(networks) == (2 if make is make_dqn_trainer else 1)  # the target network too
        assert {path_of(n) for n in networks} == {"fused"}
        assert ("kernel: fused, 2.0 times the plain path" in told.lines) is (kernel == "auto")
    assert_equal_bits(ends["fused"], ends["auto"])


@needs_kernels
def test_numbers_seen_are_as_if_nothing_had_been_measured(tmp_path: Path) -> None:
    """Running statistics of an encoder, and episodes of an environment that cannot be put back."""
    cart = fitting({"env": "CartPole-v1", "env_options": {}, "policy": {"readout": "mean"}}, mixing="mlp")
    plain = make_trainer(tmp_path / "plain", **cart)
    auto = measuring(make_trainer(tmp_path / "auto", kernel="auto", **cart), "plain")
    assert recurrence.candidates(auto.policy)[:2] == ["plain", "fused"]
    for trainer in (plain, auto):
        trainer.run(Told())
    assert_equal_bits(everything(plain), everything(auto))


@needs_kernels
def test_a_resumed_run_keeps_its_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"kernel": "auto", **fitting()}
    measuring(make_trainer(tmp_path, **changes), "fused").run(Told())
    told, again = Told(), make_trainer(tmp_path, **changes)
    monkeypatch.setattr(again, "measure_kernel", lambda paths: pytest.fail("measured"))
    again.resume()
    again.settle_kernel(told)
    assert (again.kernel, told.lines) == ("fused", ["kernel: fused, as before"])
    forced = make_trainer(tmp_path, **{**changes, "kernel": "plain"})
    forced.resume()
    forced.settle_kernel(told)
    assert forced.kernel == "plain"


@needs_kernels
def test_a_kernel_that_is_not_to_be_had_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"kernel": "auto", **fitting()}
    first = make_trainer(tmp_path, **changes)
    first.kernel = "fused_bf16"
    first.save_checkpoint()
    told, elsewhere = Told(), make_trainer(tmp_path, **changes)
    elsewhere.resume()
    monkeypatch.setattr("hrm_agent.training.loop.candidates", lambda *_: ["plain", "fused"])
    measuring(elsewhere, "fused").settle_kernel(told)
    assert elsewhere.kernel == "fused"
    line = "; measured again, because fused_bf16, which the run had before, is none of plain, fused"
    assert told.lines == [f"kernel: fused, 2.0 times the plain path{line}"]


@needs_kernels
def test_the_first_process_decides(tmp_path: Path) -> None:
    class Second(Processes):
        rank, size = 1, 2

        def broadcast_object(self, value: Any) -> Any:
            return ["fused", "kernel: fused"]

    trainer = make_trainer(tmp_path, kernel="auto", **fitting())
    trainer.processes = Second()
    trainer.measure_kernel = lambda paths: pytest.fail("measured")  # type: ignore[method-assign]
    trainer.settle_kernel(Told())
    assert trainer.kernel == "fused"


@needs_kernels
def test_a_puzzle_model_is_measured_by_its_core(tmp_path: Path) -> None:
    model = make_model(size=32, num_heads=2, inner_size=32, mixing="attention")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for training, precision in ((True, "float32"), (False, "float32"), (True, "bfloat16")):
        made = measure_model(model, ["plain", "fused"], 8, Threads(1), precision, training)
        assert list(made.ratios) == ["fused"]
        assert made.wrong == ()
    assert_equal_bits(before, dict(model.state_dict()))


@needs_kernels
def test_an_agent_of_another_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _, obs = observations()
    asked: list[Any] = []

    def measured(*given: Any) -> Choice:
        asked.append(given[2])
        return Choice("fused", {"fused": 2.0})

    monkeypatch.setattr(kernel_work, "measure_policy", measured)
    here = {"kernel": "plain", "instruction_set": instruction_set()}
    assert choose_for_playing(policy, "auto", obs, 32, Threads(1), here) == "plain"
    assert choose_for_playing(policy, "fused", obs, 32, Threads(1), here) == "fused"
    assert asked == []
    assert choose_for_playing(policy, "auto", obs, 32, Threads(1), {"kernel": "plain"}) == "fused"
    assert asked == [[Passes(1, 0, 32)]]


def test_an_agent_is_played_as_it_was_trained_on_the_same_processor_alone() -> None:
    here = instruction_set()
    assert here in ("avx512_bf16", "avx512", "avx2", "neon", "plain")
    assert path_of_training({"kernel": "plain", "instruction_set": here}) == "plain"
    assert path_of_training({"kernel": "fused_bf16", "instruction_set": here}) == "fused"
    assert path_of_training({"kernel": "fused", "instruction_set": "abacus"}) == ""
    assert path_of_training({"kernel": "fused"}) == ""
