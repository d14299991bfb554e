"""Sessions of the page with tiny agents on small mazes."""

from __future__ import annotations

from functools import partial
from typing import Any

from hrm_agent.agents.agent import Agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.playground.game import Game
from hrm_agent.playground.world import make_world
from tiny import MAZE, tiny_policy

OPTIONS: dict[str, Any] = {**MAZE, "p_change": 0.3, "max_episode_steps": 30}


def tiny_agent(env_id: str = "DynamicMaze-v0", env_options: dict[str, Any] = OPTIONS, **changes: Any) -> Agent:
    env = make_vector_env(env_id, 1, env_options)
    policy = tiny_policy(env.single_observation_space, actions=env.single_action_space, **changes)
    return Agent(policy, env.single_observation_space, env.single_action_space, {"env": env_id})


def tiny_game(agent: Agent | None = None, options: dict[str, Any] = OPTIONS, **more: Any) -> Game:
    agent = agent or tiny_agent(env_options=options, segments=2)
    return Game(agent, partial(make_world, "DynamicMaze-v0", options, "test", 0), **more)
