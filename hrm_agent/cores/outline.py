"""Networks without memory for their weights: what a file says of a network, before anything of that size is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from hrm_agent.cores import find_core

Network = TypeVar("Network", bound=nn.Module)


def outline(build: Callable[[], Network], core: str) -> Network:
    """A network on torch's device `meta`: the names, shapes and dtypes of its weights. No random number is drawn.

    Args:
        build: makes the network.
        core: name of its core. One of another package that needs its numbers while it is built is built as it is.

    Raises:
        ValueError: from `build`, or more weights than can be counted.
    """
    try:
        with torch.device("meta"):
            return build()
    except ValueError:
        raise
    except Exception as error:
        if not find_core(core).__module__.startswith("hrm_agent."):
            return build()
        raise ValueError(f"no such network can be built ({' '.join(str(error).split())[:200]})") from None
