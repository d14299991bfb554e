"""`python -m hrm_agent.evaluate run=RUN`: an agent on held-out levels, beside the baselines and the bound."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hrm_agent import __version__
from hrm_agent.agent import Agent
from hrm_agent.checkpoint import write_atomically
from hrm_agent.cli import parse_agent_options, usage_errors
from hrm_agent.environments import make_vector_env
from hrm_agent.evaluation.episodes import PolicyActor, RandomActor, ReplanActor, run_in_shards
from hrm_agent.evaluation.report import format_report, measure_cost, summarize, summarize_clairvoyant
from hrm_agent.parallel import Shards, available_cores
from hrm_envs import MazeVectorEnv

BATCH = 256


def evaluate(
    run: str,
    episodes: int = 1000,
    out: str | None = None,
    carry: str | None = None,
    segments: int | None = None,
    seed: int = 0,
    band: str = "test",
    env: str | None = None,
    best: bool = True,
    env_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Greedy episodes of a trained agent, a random policy and a BFS re-planner on the same levels.

    The same call gives the same numbers, but for `ms_per_decision` and `ms_per_decision_batched`.

    Args:
        run: folder of a training run or of an agent.
        episodes: levels `seed ... seed + episodes - 1`, the first episode of each.
        out: file for the JSON, written whole or not at all.
        carry, segments: a lesion: another carry rule or number of segments than the agent was trained with.
        seed: number of the first level.
        band: band of levels, where the environment has bands.
        env: another environment than the agent was trained on; its spaces must be the same.
        best: of a run's agents, the best on validation levels rather than the last.
        env_options: changed keyword arguments of the environment.

    Returns:
        What is written: the agent's metrics (`report.summarize`) and cost (`report.measure_cost`) beside
        `random`, `bfs_replanner` (None where observations are not mazes), `clairvoyant`, and what was
        evaluated on what. A metric without ground (no oracle, no success) is None.

    Raises:
        ValueError: no agent there, a file of it damaged, an agent that does not fit the environment, or a
            setting out of range; nothing is written then.
    """
    if out is not None and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise ValueError(f"out={out}: expected a file in a folder that exists")
    agent = Agent.load(run, carry=carry, segments=segments, best=best)
    trained_on = agent.info.get("env")
    env_id = env or trained_on
    if env_id is None:
        raise ValueError(f"run={run}: the agent does not say its environment; give one with env=")
    options = {**(agent.info.get("env_options") or {} if env_id == trained_on else {}), **(env_options or {})}
    probe = make_vector_env(env_id, 1, options)
    agent.check_fits(probe.single_observation_space, probe.single_action_space)
    is_maze = isinstance(probe.unwrapped, MazeVectorEnv)
    probe.close()

    level: dict[str, Any] = {
        "env_id": env_id,
        "env_options": options,
        "episodes": episodes,
        "seed": seed,
        "band": band,
    }
    shards = Shards(available_cores())
    policy, actions = agent.policy, int(agent.action_space.n)  # type: ignore[attr-defined]
    played = run_in_shards(lambda: PolicyActor(policy), **level, batch=BATCH, shards=shards)
    at_random = run_in_shards(lambda: RandomActor(actions), **level, batch=BATCH)
    replanned = run_in_shards(ReplanActor, **level, batch=BATCH) if is_maze else None
    report = {
        **summarize(played),
        **measure_cost(policy, agent.observation_space, BATCH),
        "random": summarize(at_random),
        "bfs_replanner": None if replanned is None else summarize(replanned),
        "clairvoyant": summarize_clairvoyant(played),
        "seeds": {"first": seed, "count": episodes},
        "level_band": played.level_band,
        "env": env_id,
        "env_options": options,
        **_describe(agent, run),
    }
    if out is not None:
        write_atomically(Path(out), (json.dumps(report, indent=2) + "\n").encode())
    return report


def _describe(agent: Agent, run: str) -> dict[str, Any]:
    config = agent.policy.config
    return {
        "run": str(run),
        "core": config.core,
        "carry": config.carry,
        "segments": config.segments,
        "time_gradient": config.time_gradient,
        "parameters": sum(p.numel() for p in agent.policy.parameters()),
        "frames": agent.info.get("frames"),
        "seconds": agent.info.get("seconds"),
        "training_seed": agent.info.get("seed"),
        "hrm_agent_version": __version__,
    }


def main() -> None:
    usage = "python -m hrm_agent.evaluate run=RUN [KEY=VALUE] ..."
    with usage_errors():
        options = parse_agent_options(sys.argv[1:], "evaluate", usage)
        report = evaluate(**options)
    print(format_report(report))
    if options["out"] is not None:
        print(f"wrote {options['out']}")


if __name__ == "__main__":
    main()
