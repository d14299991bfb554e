"""The record of a trial, the same in both searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine.records import Record
from experiments.engine.runner import Job
from experiments.engine.runs import agent_info, cost_of, metrics, sampled_curve
from hrm_agent.parallel.threads import instruction_set


def trial_record(
    job: Job, place: Path, by_library: bool, env: str, budget_seconds: float, what: dict[str, Any]
) -> Record:
    """What a trial reached.

    Args:
        job: the agent, and the number of the trial as its seed.
        place: the folder of its run.
        by_library: whether Stable-Baselines3 trained it.
        env, budget_seconds: the same for all trials; processor seconds.
        what: fields that say what was tried.
    """
    described = json.loads((place / "result.json").read_text()) if by_library else agent_info(place)
    curve = sampled_curve(metrics(place))
    return {
        "agent": job.arm,
        "trial": job.seed,
        **what,
        "success": described["validation"]["success"],
        "success_ci95": described["validation"]["success_ci95"],
        "sampled_success": curve[-1][2] if curve else None,
        "frames": described["frames"],
        "seconds": described["seconds"],
        "steps_per_second": round(described["frames"] / described["seconds"], 1),
        "parameters": described["parameters"],
        "budget_seconds": budget_seconds,
        "clock": "cpu",
        "env": env,
        "fog": False,
        "seed": 0,
        "instruction_set": instruction_set(),
        **cost_of(place),
    }
