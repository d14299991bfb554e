"""A project that uses HRM-Agent: a corridor to be walked, a core to walk it with, and the agent that came of it."""

from second_project.envs import register_envs

register_envs()
