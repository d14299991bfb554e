"""Agents of `Hanoi-v0`: the study of `experiments.engine.runner`, with the moves that every level took."""

from __future__ import annotations

from typing import Any

from experiments.engine import runner


class Study(runner.Study):
    """Nearly all levels are solved in time, so agents differ in their moves."""

    def outcomes(self, report: dict[str, Any]) -> dict[str, Any]:
        steps = {"steps": report["levels"]["steps"], "sampled_steps": report["sampled"]["levels"]["steps"]}
        return super().outcomes(report) | steps
