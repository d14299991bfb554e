"""HRM-Agent: recurrent reasoning cores as policies whose latent carries over between environment steps.

The public interface is here and in `hrm_agent.cores`; everything else may change from version to version.

- `learn`: train an agent, from an environment's id, an object or a callable; `Callback` watches and ends training,
  `Logger` is what its numbers go to.
- `Agent`: `load`, `save`, `predict`, `check_fits`.
- `register`, `make`, `registry`: agents by name. Entry-point group `hrm_agent.agents`:
  `NAME-vN = "package.module:callable"`.
- `make_env`: one environment by id, in the wrappers used in training; without them an agent cannot read the
  observations of `MiniGrid-DoorKey-5x5-v0`, for example.
- `hrm_agent.cores`: `Core` and `State`, to write a core; `register_core`, or the entry-point group `hrm_agent.cores`:
  `NAME = "package.module:Class"`. Then `core=NAME` trains it, and its keyword-only arguments are `core.OPTION`.
- Any Gymnasium environment: `env=PACKAGE:ID` imports the package, which registers the id. An id from an agent's or a
  run's file imports nothing.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hrm_agent.files import interrupts

if interrupts.is_command(sys.argv, sys.orig_argv, __name__):
    interrupts.in_one_line()  # first: what follows takes seconds
    if sys.argv[0] == "-m":
        from hrm_agent.launch.pages import print_kept_page

        _command, *_given = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
        print_kept_page(_command.removeprefix(f"{__name__}."), _given)  # ends the process where all is said

import hrm_envs  # noqa: F401 - registers the environments

if TYPE_CHECKING:
    from hrm_agent.agents.agent import Agent
    from hrm_agent.agents.registry import make, register, registry
    from hrm_agent.environments.make import make_env
    from hrm_agent.train import learn
    from hrm_agent.training.callbacks import Callback
    from hrm_agent.training.loggers import Logger

__version__ = "0.1.0"
__all__ = ["Agent", "Callback", "Logger", "__version__", "learn", "make", "make_env", "register", "registry"]

_MODULES = {"Agent": "agents.agent", "Callback": "training.callbacks", "Logger": "training.loggers", "learn": "train",
            "make_env": "environments.make", "make": "agents.registry", "register": "agents.registry",
            "registry": "agents.registry"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported at first use, so that commands print before torch is imported, which takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
