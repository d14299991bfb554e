"""HRM-Agent: recurrent reasoning cores as policies whose latent carries over between environment steps.

What other projects build on is here and in `hrm_agent.cores`; everything else may change from version to version.

- `Agent`: `load`, `save`, `predict`, `check_fits`.
- `register`, `make`, `registry`: agents by name. Entry-point group `hrm_agent.agents`:
  `NAME-vN = "package.module:callable"`.
- `hrm_agent.cores`: `Core` and `State`, to write a core; `register_core`, or the entry-point group `hrm_agent.cores`:
  `NAME = "package.module:Class"`. Then `core=NAME` trains it, and its keyword-only arguments are `core.OPTION`.
- An environment needs nothing of ours: `env=PACKAGE:ID` imports the package, which registers the id with Gymnasium.
"""

import hrm_envs  # noqa: F401 - registers the environments
from hrm_agent.agent import Agent
from hrm_agent.registration import make, register, registry

__version__ = "0.1.0"
__all__ = ["Agent", "__version__", "make", "register", "registry"]
