"""Our cores inside agents of Stable-Baselines3 (extra `sb3`): `CoreExtractor`.

The reverse needs nothing from here: `hrm_agent.Agent` follows the library's `predict`, so its `evaluate_policy` accepts
our agents, and `hrm_agent.baselines.vec_env.SB3VecEnv` makes a `VecEnv` of our vector environments.
"""

from __future__ import annotations

from hrm_agent.baselines.core_extractor import CoreExtractor

__all__ = ["CoreExtractor"]
