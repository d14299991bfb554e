"""`python -m second_project.play [RUN]`: play the corridor with the agent of a run, or with the one that ships."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

import hrm_agent
import second_project  # noqa: F401 - registers the environment

EPISODES = 200
Choice = Callable[[Any, bool], Any]


def success(choose: Choice) -> float:
    """Share of episodes that end at the right door."""
    env, wins = gym.make("Corridor-v0"), 0
    for seed in range(EPISODES):
        observation, ended, first = env.reset(seed=seed)[0], False, True
        while not ended:
            observation, _, terminated, truncated, info = env.step(choose(observation, first))
            ended, first = terminated or truncated, False
        wins += info["is_success"]
    return wins / EPISODES


class Player:
    """An agent that keeps its state between steps, and is told where episodes begin."""

    def __init__(self, agent: hrm_agent.Agent) -> None:
        self.agent = agent
        self.state: Any = None

    def __call__(self, observation: Any, first: bool) -> Any:
        action, self.state = self.agent.predict(observation, self.state, episode_start=np.array([first]))
        return action


def begins_anew(agent: hrm_agent.Agent) -> bool:
    """Whether a state is carried from step to step, and forgotten where an episode begins."""
    observation, _ = gym.make("Corridor-v0").reset(seed=0)
    _, fresh = agent.predict(observation)
    _, carried = agent.predict(observation, fresh, episode_start=np.array([False]))
    _, again = agent.predict(observation, carried, episode_start=np.array([True]))
    return bool(np.array_equal(again, fresh) and not np.array_equal(carried, fresh))


def main() -> None:
    env = gym.make("Corridor-v0")
    agent = hrm_agent.Agent.load(sys.argv[1]) if sys.argv[1:] else hrm_agent.make("Corridor-Ring-v0", env=env)
    agent.check_fits(env.observation_space, env.action_space)
    random = np.random.default_rng(0)
    report = {
        "agent": success(Player(agent)),
        "random": success(lambda *_: int(random.integers(2))),
        "begins_anew": begins_anew(agent),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
