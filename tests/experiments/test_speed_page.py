"""What the pages about speed say is in the JSON beside them, or follows by the arithmetic that they name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from hrm_agent.benchmarks.deciding import decision_operations
from hrm_agent.benchmarks.networks import RunParts, build_run
from hrm_agent.benchmarks.published import PublishedAgent
from hrm_agent.benchmarks.training import paper_segment, segment_operations

ROOT = Path(__file__).resolve().parents[2]
SPEED = ROOT / "experiments" / "speed"
PAGE = (ROOT / "docs" / "scale.md").read_text()
H100 = 800e12


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SPEED / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["roofline", "profile_training", "plain_hrm_agent"])
def test_tables_say_what_the_records_say(name: str) -> None:
    page = (SPEED / "README.md").read_text()
    if not (SPEED / f"{name}.json").is_file():
        assert f"<!-- table {name} -->\n\n<!-- /table {name} -->" in page
        pytest.skip("not measured yet: its table is empty")
    assert script(name).filled(page, json.loads((SPEED / f"{name}.json").read_text())) == page


def test_the_table_of_the_default_run_says_what_its_record_says(tmp_path: Path) -> None:
    module, page = script("default_run"), (SPEED / "README.md").read_text()
    module.PAGE = tmp_path / "README.md"
    module.PAGE.write_text(page)
    module.draw(json.loads((SPEED / "default_run.json").read_text()))
    assert module.PAGE.read_text() == page


def test_floors_are_those_of_the_records_rates() -> None:
    module, result = script("roofline"), json.loads((SPEED / "roofline.json").read_text())
    for r in result["records"]:
        floors = module.floor_times(r, result["peak_gflops"], result["bandwidth_gigabytes_per_second"])
        assert {name: r[name] for name in floors} == floors
        assert r["passed"]
        assert r["above_floor"] > 1  # else it is no floor
    cores = {(r["size"], r["core"], r["mixing"], r["training"]) for r in result["records"]}
    assert len(cores) == 2 * 2 * len(module.NAMES)


def test_operations_and_bytes_of_the_rooflines_are_still_those() -> None:
    module = script("roofline")
    records = json.loads((SPEED / "roofline.json").read_text())["records"]
    for core, mixing in (("trm", "conv"), ("gru", "")):
        shape = module.SHAPES["default"]
        [r] = [
            r for r in records
            if (r["size"], r["core"], r["mixing"], r["training"], r["path"])
            == ("default", core, mixing, True, "plain")
        ]  # fmt: skip
        case = module.segment_case("default", shape, core, mixing, True, ["plain"])
        assert r["operations"] == case.operations
        assert r["bytes"] == module.least_bytes("default", shape, core, mixing, True)


# docs/scale.md


@pytest.fixture(scope="module")
def paper() -> RunParts:
    return build_run("paper", ["algo.num_envs=2"])


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


def test_the_limits_of_the_page_follow_from_its_counts(paper: RunParts) -> None:
    decision, segment = decision_operations(paper), segment_operations(paper_segment(2))
    rate, frames = H100 / decision, H100 / (2 * decision + 8 * segment)
    assert f"= {round(rate, -3):,.0f} decisions/s: a batch of 256 every {256e3 / rate:.1f} ms" in PAGE
    assert f"= {round(frames, -3):,.0f} frames/s" in PAGE
    steps = json.loads((SPEED / "env_speed.json").read_text())["dynamic_maze_steps_per_second"]
    assert f"{steps / 1e6:.0f} million/s" in PAGE
    assert f"{rate / steps:.1%} of one core" in PAGE
