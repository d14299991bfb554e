"""Folders as runs of `hrm_agent.train` leave them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def make_run(
    folder: Path,
    settings: dict[str, Any],
    curves: dict[str, list[tuple[int, float]]],
    outcomes: tuple[str, str] | None = None,
) -> Path:
    """A finished run.

    Args:
        curves: by name, frames and values.
        outcomes: of greedy and of sampled actions on test levels; None: it has not been measured.
    """
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"run_version": 1, "command": "python -m hrm_agent.train"}')
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    lines: dict[int, dict[str, float]] = {}
    for name, points in curves.items():
        for frames, value in points:
            lines.setdefault(frames, {"frames": frames})[name] = value
    (folder / "metrics.jsonl").write_text("".join(json.dumps(lines[frames]) + "\n" for frames in sorted(lines)))
    if outcomes is not None:
        greedy, sampled = (
            {"success": o.count("1") / len(o), "return": 1.0, "episodes": len(o), "levels": {"success": o}}
            for o in outcomes
        )
        seeds = {"first": 0, "count": len(outcomes[0])}
        where = {"seeds": seeds, "split": "test", "env": settings["env"]["id"], "env_options": {}}
        (folder / "eval.json").write_text(json.dumps({**greedy, "sampled": sampled, **where}))
    return folder
