"""An agent in the fast maze that it was trained in and, unchanged, on the same levels in NetHack.

    python -m experiments.minihack.evaluate run=FOLDER [run=...] [agent=ID ...] [episodes=200] [seed=0] [out=FILE]

Greedy, on test levels. Every agent adds a record to `out` (results.json beside this file), or replaces its
own; the table of README.md is redrawn from it. Needs the extra `minihack`.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import hrm_agent
from experiments.engine.machine import commit_of
from experiments.engine.pages import draw
from experiments.engine.records import put
from experiments.engine.tables import table
from experiments.minihack.draw import rows_of
from hrm_agent.agents.agent import Agent
from hrm_agent.environments.make import check_env_id
from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.launch.cli import UsageError, usage_errors

FOLDER = Path(__file__).resolve().parent
SPLIT = "test"


def play(agent: Agent, env: gym.Env, seeds: range) -> dict[str, Any]:
    """The first episode of each seed: outcome, steps and actions, level by level, and seconds in all."""
    success, steps, actions, levels = [], [], [], []
    began = time.perf_counter()
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        levels.append(env.unwrapped.level_seed)  # type: ignore[attr-defined]
        state, start, ended, taken = None, True, False, ""
        while not ended:
            action, state = agent.predict(observation, state, start)
            observation, _, terminated, truncated, _ = env.step(int(action))
            taken += "NESW"[int(action)]
            start, ended = False, terminated or truncated
        success.append(bool(terminated))
        steps.append(len(taken))
        actions.append(taken)
    return {
        "success": success,
        "steps": steps,
        "actions": actions,
        "levels": levels,
        "seconds": round(time.perf_counter() - began, 1),
    }


def compare(agent: Agent, name: str, episodes: int, seed: int) -> dict[str, Any]:
    """The record of one agent.

    Raises:
        ValueError: trained on a world that is not built in MiniHack, or MiniHack is not installed.
    """
    env_id, options = agent.environment(None, {"split": SPLIT})
    twin = f"MiniHack{env_id}"
    check_env_id(twin)
    seeds = range(seed, seed + episodes)
    worlds = []
    for world in (env_id, twin):
        env = gym.make(world, **options)
        agent.check_fits(env.observation_space, env.action_space)
        worlds.append(play(agent, env, seeds))
        env.close()
    fast, nethack = worlds
    assert fast["levels"] == nethack["levels"]
    return {
        "agent": name,
        "env": env_id,
        "twin": twin,
        "env_options": options,
        **{key: agent.info.get(key) for key in ("algo", "core", "carry", "segments", "seed", "frames")},
        "parameters": sum(p.numel() for p in agent.policy.parameters()),
        "episodes": episodes,
        "first_seed": seed,
        "split": SPLIT,
        **_summary("", fast),
        **_summary("minihack_", nethack),
        "same_outcome": float(np.equal(fast["success"], nethack["success"]).mean()),
        "same_actions": float(np.mean([a == b for a, b in zip(fast["actions"], nethack["actions"], strict=True)])),
        "outcomes": "".join("01"[s] for s in fast["success"]),
        "minihack_outcomes": "".join("01"[s] for s in nethack["success"]),
        "versions": {"hrm_agent": hrm_agent.__version__, **_versions("nle", "minihack", "gymnasium", "torch")},
        "machine": platform.machine(),
        "commit": commit_of(),
    }


def _summary(prefix: str, played: dict[str, Any]) -> dict[str, Any]:
    won = np.asarray(played["success"])
    return {
        f"{prefix}success": float(won.mean()),
        f"{prefix}success_ci95": list(wilson_interval(int(won.sum()), len(won))),
        f"{prefix}steps": float(np.mean(played["steps"])),
        f"{prefix}seconds": played["seconds"],
    }


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


def _options(arguments: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"run": [], "agent": [], "episodes": 200, "seed": 0, "out": FOLDER / "results.json"}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options or not value:
            raise UsageError(f"{argument}: expected KEY=VALUE with a key out of {', '.join(options)}")
        if key in ("run", "agent"):
            options[key].append(value)
        elif key == "out":
            options[key] = Path(value)
        elif not value.isdecimal() or (key == "episodes" and int(value) < 1):
            raise UsageError(f"{argument}: expected a whole number, for episodes 1 or more")
        else:
            options[key] = int(value)
    if not options["run"] and not options["agent"]:
        raise UsageError("nothing to evaluate: give run=FOLDER or agent=ID")
    return options


def _agents(options: dict[str, Any]) -> list[tuple[str, Agent]]:
    found = [(Path(folder).resolve().name, Agent.load(folder)) for folder in options["run"]]
    if options["agent"] and not hasattr(hrm_agent, "make"):
        raise UsageError("agent=ID: this version has no registry of agents; give run=FOLDER")
    return found + [(name, hrm_agent.make(name)) for name in options["agent"]]


def main() -> None:
    with usage_errors():
        options = _options(sys.argv[1:])
        for name, agent in _agents(options):
            record = compare(agent, name, options["episodes"], options["seed"])
            put(options["out"], [record], ("env", "agent"))
            print(table(rows_of([record])))
    if options["out"] == FOLDER / "results.json":
        draw(FOLDER)


if __name__ == "__main__":
    main()
