"""What `python -m hrm_agent.bench` says is so: same function, same work, wrong paths found. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrm_agent import bench
from hrm_agent.benchmarks import (
    automatic,
    cases,
    decisions,
    deep_supervision,
    environments,
    inputs,
    networks,
    paths,
    stacks,
    training,
)
from hrm_agent.benchmarks.cases import Case, Competitor, Options, error_between
from hrm_agent.benchmarks.networks import SHAPES, build_run
from hrm_agent.benchmarks.published import PublishedAgent, PublishedTraining
from hrm_agent.benchmarks.recipe import published
from hrm_agent.benchmarks.suites import SUITES
from hrm_agent.cores.blocks import BlockStack
from hrm_agent.evaluation.cost import count, measure_cost
from hrm_agent.parallel.threads import instruction_set
from hrm_agent.recurrence.kernel_timing import Choice

Change = Callable[[Tensor], Tensor]


def quick(*others: str) -> Options:
    return Options((paths.PLAIN, *others), cores=1, quick=True)


QUICK = quick("other")


def stacks_of(module: nn.Module) -> list[BlockStack]:
    return [m for m in module.modules() if isinstance(m, BlockStack)]


def forward_by(change: Change | dict[str, Change]) -> Callable[[nn.Module, str], None]:
    """A `put_on` whose path `other`, or whose paths by name, change what stacks of blocks say."""
    changes = change if isinstance(change, dict) else {"other": change}

    def put_on(module: nn.Module, path: str) -> None:
        if path not in changes:
            paths.put_on(module, path)
            return
        paths.put_on(module, paths.PLAIN)
        for stack in stacks_of(module):
            stack.forward = lambda *given, plain=stack.forward: changes[path](plain(*given))  # type: ignore[method-assign]

    return put_on


def measured(case: Case) -> dict[str, dict[str, Any]]:
    peaks = {"float32": {"1": 100.0}, "bfloat16": {"1": 200.0}}
    return {r["path"]: r for r in cases.measure(case, rounds=1, seconds=1e-6, seed=5, peaks=peaks)}


def scaled_gradient(y: Tensor) -> Tensor:
    """Right forward, and a gradient that is 1% too large."""
    return y + 0.01 * (y - y.detach())


FORWARD: list[tuple[ModuleType, Callable[[Options], Iterator[Case]]]] = [
    (stacks, lambda options: iter([stacks.block_case("default", SHAPES["default"], "conv", False, options)])),
    (decisions, lambda options: iter([decisions.decision_case("default", 8, options)])),
    (training, lambda options: iter([training.minibatch_case(options)])),
    (deep_supervision, deep_supervision.segment),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("module", "make"), FORWARD, ids=lambda p: getattr(p, "__name__", "").rpartition(".")[2])
def test_a_path_that_computes_something_else_fails(
    module: ModuleType, make: Callable[[Options], Iterator[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, tuple[Change, bool]] = {
        "the same": (lambda y: y, True),
        "rounded otherwise": (lambda y: y * (1 + 2e-7), True),
        "a little off": (lambda y: y + 1e-3 * y.roll(1, 0), False),
        "nothing": (torch.zeros_like, False),
        "not a number": (lambda y: y * float("nan"), False),
        "of the first row only": (lambda y: torch.cat([y[:1], y[:-1]]), False),
    }
    if module in (training, deep_supervision):  # each takes seconds, and one function judges them all
        changes = {name: changes[name] for name in ("the same", "a little off", "of the first row only")}
    monkeypatch.setattr(module, "put_on", forward_by({name: change for name, (change, _) in changes.items()}))
    for case in make(quick(*changes)):
        records = measured(case)
        for name, (_, right) in changes.items():
            record = records[name]
            assert record["passed"] is right, f"{name}: {record['error']} of {record['tolerance']}"
            assert (record["seconds"] is not None) is right  # what computes something else is not timed


@pytest.mark.thorough
@pytest.mark.parametrize(("module", "make"), [FORWARD[2], FORWARD[3]], ids=["minibatch", "segment"])
def test_a_wrong_gradient_behind_a_right_output_fails(
    module: ModuleType, make: Callable[[Options], Iterator[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "put_on", forward_by(scaled_gradient))
    assert [measured(case)["other"]["passed"] for case in make(QUICK)] == [False]


@pytest.mark.parametrize("mixing", stacks.MIXINGS)
def test_blocks_with_gradient_are_three_times_the_operations(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "put_on", forward_by(scaled_gradient))
    forward, both = (stacks.block_case("default", SHAPES["default"], mixing, t, QUICK) for t in (False, True))
    assert both.operations == 3 * forward.operations
    assert measured(forward)["other"]["passed"]
    assert not measured(both)["other"]["passed"]


def test_operations_are_those_that_evaluation_counts() -> None:
    parts = build_run("default", ["algo.num_envs=8", "algo.minibatch_windows=1"])
    macs = measure_cost(parts.policy, parts.env.single_observation_space, 1)["macs_per_decision"]
    assert decisions.decision_operations(parts) == 2 * macs


def test_bytes_are_those_that_operations_read_and_write() -> None:
    a, b = torch.zeros(8, 4), torch.zeros(4, 2)
    counted = count(lambda: (a @ b).relu())
    assert counted.operations == 2 * 8 * 4 * 2
    assert counted.bytes == 4 * (8 * 4 + 4 * 2 + 8 * 2) + 4 * (8 * 2 + 8 * 2)
    assert count(lambda: a.T[:2]).bytes == 0  # views move nothing


def test_a_path_that_does_not_suit_a_network_is_left_out() -> None:
    def make(path: str) -> Competitor:
        if path == "other":
            raise paths.NoPath(path)
        return Competitor(lambda: None, lambda seed: {"x": torch.ones(1)})

    assert list(measured(Case("s", "n", make, ("plain", "other"), 0, 1, "calls"))) == ["plain"]


def test_errors_are_relative_to_the_largest_number_of_an_output() -> None:
    big, small = torch.tensor([100.0, 1.0]), torch.tensor([0.5])
    reference = {"big": big, "small": small}
    assert error_between(reference, reference) == 0.0
    assert error_between({"big": big + 1, "small": small}, reference) == pytest.approx(0.01)
    assert error_between({"big": big, "small": small + 1e-2}, reference) == pytest.approx(0.02)
    nothing = {"big": big, "small": torch.tensor([1e-9])}  # is not asked to be exact on a scale of its own
    assert error_between({"big": big, "small": torch.zeros(1)}, nothing) < 1e-6
    assert error_between({"big": big * float("nan"), "small": small}, reference) == float("inf")
    with pytest.raises(ValueError, match="names or shapes"):
        error_between({"big": big}, reference)


@pytest.mark.thorough
def test_every_path_of_this_machine_passes_on_the_papers_blocks() -> None:
    options = Options(tuple(p for p in paths.available_paths() if p != paths.COMPILED), 1, quick=True)
    for training_too in (False, True):
        found = measured(stacks.block_case("paper", SHAPES["paper"], "attention", training_too, options))
        assert set(found) == set(options.paths)
        assert all(record["passed"] for record in found.values()), found


def test_fresh_input_is_fresh_and_repeatable() -> None:
    parts = build_run("default", ["algo.num_envs=8", "algo.minibatch_windows=1"])
    first, again, other = (inputs.windows(parts, 4, seed, torch.float32) for seed in (1, 1, 2))
    assert torch.equal(first.obs, again.obs)
    assert torch.equal(first.returns, again.returns)
    assert not torch.equal(first.obs, other.obs)
    assert not torch.equal(first.state[0], other.state[0])
    assert (first.obs == parts.policy.config.agent_id).flatten(2).any(-1).all()  # an agent in each of them
    assert not torch.equal(first.obs[0], first.obs[-1])  # consecutive steps, not one repeated


def test_a_vector_of_environments_is_checked_against_single_ones() -> None:
    name = environments.ENVIRONMENTS[0]
    alone, together = environments._single_outputs(name, 3), environments._vector_outputs(name, 3)
    assert error_between(together, alone) == 0.0
    assert alone["terminated"].any() or alone["truncated"].any()  # resets are among what is compared
    assert error_between(environments._vector_outputs(name, 4), alone) > 0


@pytest.mark.thorough
def test_what_auto_takes_is_shown_with_the_policy_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a path that computes something else is found there too."""
    chosen = Choice("fused", {"fused": 3.0})
    monkeypatch.setattr(automatic, "measure_policy", lambda *_: chosen)
    for overrides in (["carry=gate"], ["env=CartPole-v1"]):
        same = measured(automatic.auto_case("a policy", overrides, Options((paths.PLAIN,), 1, quick=True)))["plain"]
        assert (same["auto"], same["auto_ratio"], same["passed"]) == ("fused", None, True)
    monkeypatch.setattr(training, "put_on", forward_by(scaled_gradient))
    wrong = measured(automatic.auto_case("a policy", [], QUICK))["other"]
    assert (wrong["passed"], wrong["seconds"]) == (False, None)


@pytest.mark.thorough
def test_operations_of_a_minibatch_are_counted_alike_by_both_suites() -> None:
    both = automatic.auto_case("default", [], QUICK), training.minibatch_case(QUICK)
    assert both[0].operations == both[1].operations


# The published recipe


@pytest.fixture(scope="module")
def paper() -> networks.RunParts:
    return build_run("paper", ["algo.num_envs=3", "segments=2"])


def test_the_recipe_has_the_published_number_of_parameters(paper: networks.RunParts) -> None:
    assert sum(p.numel() for p in PublishedAgent(paper.policy).parameters()) == 541_186


def test_the_recipe_says_what_our_policy_says(paper: networks.RunParts) -> None:
    agent = PublishedAgent(paper.policy)
    obs = inputs.observations(paper, 1, 3, 7)[0]
    kept, start = inputs.state(paper, 3, 7, torch.float32), torch.tensor([True, False, False])
    with torch.no_grad():
        ours = paper.policy.step(obs, kept, start)
    q, state = agent.decide(obs.flatten(1).long(), (kept[0], kept[1]), start)
    torch.testing.assert_close(q, ours.logits, atol=1e-4, rtol=0)
    for theirs, own in zip(state, ours.state, strict=True):
        torch.testing.assert_close(theirs, own, atol=1e-4, rtol=0)
    half, _ = PublishedAgent(paper.policy, torch.bfloat16).decide(obs.flatten(1).long(), (kept[0], kept[1]), start)
    assert half.dtype == torch.float32
    assert not torch.equal(half, q)


@pytest.mark.thorough  # its forward pass is compared above
def test_the_recipe_trains_as_ours_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of one segment, ours and the recipe's, compared by the benchmark itself; a wrong one is found."""
    changes: dict[str, Change] = {"other": lambda y: y, "wrong": scaled_gradient}
    _, segment = published(Options(tuple(changes), 1, quick=True), rows=2)
    monkeypatch.setattr(training, "put_on", forward_by(changes))
    records = measured(segment)
    assert {name: record["passed"] for name, record in records.items()} == {
        "published": True, "published_bf16": True, "other": True, "wrong": False
    }  # fmt: skip
    assert records["other"]["against"] == records["wrong"]["against"] == "published"


def test_the_recipes_optimizer_learns(paper: networks.RunParts) -> None:
    obs, kept, start, actions, targets = training.segment_inputs(paper, 3, 1, torch.float32)
    agent = PublishedAgent(paper.policy)
    trained, ids = PublishedTraining(agent), obs.flatten(1).long()
    latents = agent.seed((kept[0], kept[1]), start)

    def loss() -> float:
        with torch.no_grad():
            return float((agent.segment(ids, latents)[0].gather(1, actions[:, None])[:, 0] - targets).square().mean())

    before = loss()
    for _ in range(3):
        following = trained.segment(ids, latents, actions, targets)
    assert loss() < before
    assert not following[0].requires_grad


# The command


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One suite of one case, whose paths `half` and `double` take known times, and no peaks to wait for."""

    def suite(options: Options) -> Iterator[Case]:
        def make(path: str) -> Competitor:
            value = torch.full((2,), 1.0 if path in ("plain", "double") or not suite.wrong else 2.0)  # type: ignore[attr-defined]
            return Competitor(lambda: None, lambda seed: {"x": value}, threads={"plain": 1, "fast": 2}.get(path, 3))

        yield Case("small", "case", make, ("plain", "fast"), 1e9, 10, "rows")

    suite.wrong = False  # type: ignore[attr-defined]
    seconds = {1: 0.5, 2: 0.125}
    monkeypatch.setattr(cases, "_timed", lambda competitor, *_: seconds[competitor.threads])
    monkeypatch.setattr(bench, "matrix_peaks", lambda *_: {"float32": {"1": 16.0}, "bfloat16": {"1": 32.0}})
    monkeypatch.setitem(SUITES, "small", suite)


@pytest.mark.usefixtures("_small")
def test_the_command_writes_ratios_and_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench.main(["small", "--rounds", "3", "--seed", "9", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["seed"], result["rounds"], result["clock"]) == (9, 3, "wall")
    assert result["machine"]["instruction_set"] == instruction_set()
    plain, fast = result["records"]
    assert (plain["ratio"], fast["ratio"]) == (1.0, 4.0)
    assert fast["seconds_each_round"] == [0.125] * 3
    assert (fast["gflops"], fast["share_of_peak"], fast["per_second"]) == (8.0, 0.5, 80.0)
    assert (plain["error"], fast["error"], fast["passed"]) == (None, 0.0, True)
    assert set(plain) == set(fast)
    printed = capsys.readouterr().out
    assert "4.00" in printed
    assert "80.0 rows" in printed
    assert f"instruction set: {instruction_set()}" in printed


@pytest.mark.usefixtures("_small")
def test_failures_and_slow_paths_are_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["small", "--fail-below", "4"]) == 0
    assert bench.main(["small", "--fail-below", "4.1"]) == 1
    assert "SLOW" in capsys.readouterr().out
    SUITES["small"].wrong = True  # type: ignore[attr-defined]
    out = tmp_path / "bench.json"
    assert bench.main(["small", "--seed", "9", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "FAIL" in captured.out
    assert "again with --seed 9" in captured.err
    broken = json.loads(out.read_text())["records"][1]
    assert (broken["passed"], broken["ratio"]) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bloks"], "did you mean blocks?"),
        (["blocks", "--paths", "warp"], "--paths warp: not on this machine"),
        (["--rounds", "0"], "--rounds=0: expected an integer from 1"),
        (["--cores", "0"], "--cores=0: expected an integer from 1"),
        (["--clock", "cpu", "--cores", "2"], "give --cores 1 with it"),
        (["--seed", "-1"], "--seed=-1: expected an integer from 0"),
        (["--fail-below", "0"], "--fail-below=0.0: expected a number above 0"),
        (["--out", "absent/bench.json"], "expected a file in a folder that exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "bench", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as exit_:
        bench.main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_only_what_takes_minutes_has_to_be_named() -> None:
    options = bench.build_parser().parse_args([])
    bench.check_options(options)
    assert options.suites == [name for name in SUITES if name != "published"]
    assert options.paths[0] == paths.PLAIN
    assert paths.COMPILED not in options.paths
