"""Moved to `hrm_agent.agents.hub`; this name goes with version 0.2."""

import warnings

from hrm_agent.agents.hub import *  # noqa: F403

warnings.warn("hrm_agent.hub is now hrm_agent.agents.hub", DeprecationWarning, stacklevel=2)
