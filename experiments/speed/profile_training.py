"""Where the time of a training run goes: the default run's collection and update, part by part.

    python experiments/speed/profile_training.py

Runs in one thread, so that parts do not overlap, and times each part by wrapping it. Writes
`experiments/speed/profile_training.json`.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hrm_agent.algos.ppo import PPO
from hrm_agent.cli import compose_config
from hrm_agent.collector import Collector
from hrm_agent.config import resolve, settings
from hrm_agent.environments import make_vector_env
from hrm_agent.parallel import Shards
from hrm_agent.policy import Policy
from hrm_agent.rollout import Rollout

WARM_UP, ROUNDS = 3, 30
seconds: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] += time.perf_counter() - began
        return result

    return wrapper


def main() -> None:
    torch.set_num_threads(1)
    trainer, policy_config, ppo = settings(resolve(compose_config(["shards=1"], "train")))
    torch.manual_seed(0)
    env = make_vector_env(trainer.env, ppo.num_envs, trainer.env_options)
    policy = Policy(policy_config, env.single_observation_space, env.single_action_space)
    shards = Shards(1)
    algo, collector = PPO(policy, ppo, shards, 0), Collector(env, policy, 0, shards)
    rollout = Rollout(ppo.rollout_steps, ppo.num_envs, ppo.window, env.single_observation_space, collector.state)
    env.step = timed("environment", env.step)  # type: ignore[method-assign]
    policy.step = timed("network: decisions", policy.step)  # type: ignore[method-assign]
    algo.loss = timed("network: forward and loss", algo.loss)  # type: ignore[method-assign]
    torch.autograd.grad = timed("network: backward", torch.autograd.grad)
    algo.optimizer.step = timed("optimizer", algo.optimizer.step)  # type: ignore[method-assign]
    rollout.advantages = timed("advantages", rollout.advantages)  # type: ignore[method-assign]
    for round_ in range(WARM_UP + ROUNDS):
        if round_ == WARM_UP:
            seconds.clear()
        began = time.perf_counter()
        collector.collect(rollout)
        collected = time.perf_counter()
        algo.update(rollout, 0.0)
        seconds["collection"] += collected - began
        seconds["update"] += time.perf_counter() - collected
    total = seconds.pop("collection"), seconds.pop("update")
    parts = {name: value / sum(total) for name, value in seconds.items()}
    network = sum(share for name, share in parts.items() if name.startswith("network"))
    result = {
        "command": "python experiments/speed/profile_training.py",
        "machine": "2-core x86-64 server CPU, no GPU; one thread",
        "seed": 0,
        "frames": ROUNDS * ppo.num_envs * ppo.rollout_steps,
        "seconds_collection": round(total[0], 3),
        "seconds_update": round(total[1], 3),
        "share": {name: round(share, 4) for name, share in sorted(parts.items(), key=lambda x: -x[1])},
        "share_elsewhere": round(1 - sum(parts.values()), 4),
        "share_inside_network": round(network, 4),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
