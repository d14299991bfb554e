"""Arrows point down only, and nothing is ever unpickled."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENT, ENVS = ROOT / "hrm_agent", ROOT / "envs" / "hrm_envs"

# Modules (paths below the root) -> what they may not import.
FORBIDDEN = {
    "envs/hrm_envs": ("torch", "hrm_agent", "hydra", "omegaconf"),
    "hrm_agent/algos": (
        "hrm_agent.trainer",
        "hrm_agent.collector",
        "hrm_agent.config",
        "hrm_agent.cli",
        "hrm_agent.environments",
        "hrm_agent.evaluation",
        "hrm_envs",
        "gymnasium",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/evaluation": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_agent.collector", "omegaconf", "hydra"),
    "hrm_agent/wrappers": ("torch", "hrm_envs", "hydra", "omegaconf"),
    "hrm_agent/policy.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/replay.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/learners.py": ("hrm_agent.trainer", "hrm_agent.config", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/collector.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/run_loop.py": (
        "hrm_agent.algos",
        "hrm_agent.trainer",
        "hrm_agent.supervised",
        "hrm_agent.config",
        "hrm_agent.cli",
        "hrm_agent.runs",
        "gymnasium",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/runs.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_agent.supervised", "hrm_envs"),
    "hrm_agent/trainer.py": (
        "hrm_agent.config",
        "hrm_agent.cli",
        "hrm_agent.runs",
        "hrm_agent.train",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/baselines": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_agent.policy", "omegaconf", "hydra"),
    "hrm_agent/card.py": ("hrm_agent", "torch", "gymnasium"),
    "hrm_agent/registration.py": ("hrm_agent.trainer", "hrm_agent.evaluation", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/hub.py": ("hrm_agent.trainer", "hrm_agent.evaluation", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/agent.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
}
COMMANDS = {
    "train",
    "supervise",
    "solve",
