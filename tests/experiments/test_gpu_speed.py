"""`experiments/speed/gpu.py` runs where there is no GPU, in tiny sizes, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.engine.records import ROOT
from experiments.speed import gpu
from forks import Ended, Forks


def run(forks: Forks, out: Path, *arguments: str) -> Ended:
    command = ["-m", "experiments.speed.gpu", "--device", "cpu", "--smoke", "--out", str(out), *arguments]
    return forks.run([command], [{}], ROOT)[0]


@pytest.mark.thorough
def test_decisions_are_right_and_rows_that_are_there_are_left(forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    common = ("--parts", "decisions", "--paths", "eager float32", "eager")
    first = run(forks, out, *common)
    assert first.returncode == 0, first.stderr
    before = json.loads(out.read_text())["rows"]
    assert [(row["path"], row["batch"], row["right"]) for row in before] == [
        (path, batch, True) for batch in (2, 3) for path in ("eager float32", "eager")
    ]
    for row in before:
        assert row["share_of_limit"] == pytest.approx(row["per_second"] * row["flops_a_decision"] / row["matrix_flops"])
    second = run(forks, out, *common, "graph")
    assert second.returncode == 0, second.stderr
    after = json.loads(out.read_text())["rows"]
    assert after[:4] == before
    assert [row["path"] for row in after[4:]] == ["graph", "graph"]
    content = json.loads(out.read_text())
    out.write_text(json.dumps({**content, "machine": {**content["machine"], "device": "another"}}))
    other = run(forks, out, *common)
    assert other.returncode == 1
    assert "measured on another machine" in other.stderr


@pytest.mark.thorough
def test_training_and_profile_are_written(forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run(forks, out, "--parts", "training", "profile")
    assert done.returncode == 0, done.stderr
    rows = {row["switches"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.keys() == {"all", "none"}
    assert all(row["frames_per_second"] > 0 and row["said"] == [] for row in rows.values())
    profile = json.loads((tmp_path / "gpu_profile.json").read_text())
    for part in ("collect", "update"):
        assert profile["parts"][part]["operations"][0]["microseconds"] > 0
        assert part in (tmp_path / "gpu_profile.txt").read_text()


def test_the_papers_network_has_the_operations_that_were_counted_by_hand() -> None:
    """144 tokens of width 64, 24 blocks a segment, 8 segments: 4.65 billion."""
    block = 2 * 144 * (4 * 64 * 64 + 3 * 64 * 256) + 4 * 144**2 * 64
    assert gpu.Paper(torch.device("cpu"), smoke=False).flops == block * 24 * 8
