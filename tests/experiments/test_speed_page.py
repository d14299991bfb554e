"""What the pages about speed say is in the JSON beside them, or follows by the arithmetic that they name."""

from __future__ import annotations

import json

from experiments.engine.records import ROOT
from experiments.speed import roofline
from hrm_agent.benchmarks.networks import build_run

SPEED = ROOT / "experiments" / "speed"
PAGE = (ROOT / "docs" / "scale.md").read_text()


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


def test_what_the_page_says_of_an_optimizer_step_is_the_default_policys() -> None:
    """Gradients of all parameters, in an all-reduce over two processes: 4 bytes each."""
    small = build_run("default", ["algo.num_envs=8", "algo.minibatch_windows=1"])
    parameters = sum(p.numel() for p in small.policy.parameters())
    assert f"{4 * parameters / 1e6:.1f} MB for the default policy ({parameters:,} parameters)" in PAGE
