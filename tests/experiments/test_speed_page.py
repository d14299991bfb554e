"""What the pages about speed say is in the JSON beside them, or follows by the arithmetic that they name."""

from __future__ import annotations

import json

import pytest

from experiments.engine.records import ROOT
from experiments.speed import roofline
from hrm_agent.benchmarks.decisions import decision_operations
from hrm_agent.benchmarks.networks import RunParts, build_run
from hrm_agent.benchmarks.published import PublishedAgent
from hrm_agent.benchmarks.training import paper_segment, segment_operations

SPEED = ROOT / "experiments" / "speed"
PAGE = (ROOT / "docs" / "scale.md").read_text()
H100 = 800e12


def test_floors_are_those_of_the_records_rates() -> None:
    result = json.loads((SPEED / "roofline.json").read_text())
    for r in result["records"]:
        floors = roofline.floor_times(r, result["peak_gflops"], result["bandwidth_gigabytes_per_second"])
        assert {name: r[name] for name in floors} == floors
        assert r["passed"]
        assert r["above_floor"] > 1  # else it is no floor
    cores = {(r["size"], r["core"], r["mixing"], r["training"]) for r in result["records"]}
    assert len(cores) == 2 * 2 * len(roofline.NAMES)


def test_operations_and_bytes_of_the_rooflines_are_still_those() -> None:
    records = json.loads((SPEED / "roofline.json").read_text())["records"]
    for core, mixing in (("trm", "conv"), ("gru", "")):
        shape = roofline.SHAPES["default"]
        [r] = [
            r for r in records
            if (r["size"], r["core"], r["mixing"], r["training"], r["path"])
            == ("default", core, mixing, True, "plain")
        ]  # fmt: skip
        case = roofline.segment_case("default", shape, core, mixing, True, ["plain"])
        assert r["operations"] == case.operations
        assert r["bytes"] == roofline.least_bytes("default", shape, core, mixing, True)


# docs/scale.md


@pytest.fixture(scope="module")
def paper() -> RunParts:
    return build_run("paper", ["algo.num_envs=2"])


@pytest.mark.thorough
def test_the_counts_of_the_page_are_those_of_the_networks(paper: RunParts) -> None:
    small = build_run("default", ["algo.num_envs=8", "algo.minibatch_windows=1"])
    decision, default = decision_operations(paper), decision_operations(small)
    segment = segment_operations(paper_segment(2))
    assert f"| {decision / 1e9:.2f} GFLOP |" in PAGE
    assert f"| {segment / 1e9:.2f} GFLOP |" in PAGE
    frame = 2 * decision + 8 * segment
    assert f"| {frame / 1e9:.1f} GFLOP |" in PAGE
    assert f"| {default / 1e6:.1f} MFLOP |" in PAGE
    assert f"| {4 * default / 1e6:.1f} MFLOP |" in PAGE  # forward once to act, and once with a gradient
    assert f"{sum(p.numel() for p in PublishedAgent(paper.policy).parameters()):,} parameters" in PAGE
    assert f"{sum(p.numel() for p in small.policy.parameters()):,} parameters" in PAGE
    whole = sum(s.numel() for s in paper.policy.core.initial_state(1)) * 4
    assert f"{whole:,} bytes; {sum(s.numel() for s in paper.policy.initial_state(1)) * 4} bytes" in PAGE


@pytest.mark.thorough
def test_the_limits_of_the_page_follow_from_its_counts(paper: RunParts) -> None:
    decision, segment = decision_operations(paper), segment_operations(paper_segment(2))
    rate, frames = H100 / decision, H100 / (2 * decision + 8 * segment)
    assert f"= {round(rate, -3):,.0f} decisions/s: a batch of 256 every {256e3 / rate:.1f} ms" in PAGE
    assert f"= {round(frames, -3):,.0f} frames/s" in PAGE
    steps = json.loads((SPEED / "env_speed.json").read_text())["dynamic_maze_steps_per_second"]
    assert f"{steps / 1e6:.0f} million/s" in PAGE
    assert f"{rate / steps:.1%} of one core" in PAGE
