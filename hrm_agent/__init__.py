"""HRM-Agent: recurrent reasoning cores as policies whose latent carries over between environment steps."""

import hrm_envs  # noqa: F401 - registers the environments
from hrm_agent.agent import Agent
from hrm_agent.registration import make, register, registry

__version__ = "0.1.0"
__all__ = ["Agent", "__version__", "make", "register", "registry"]
