"""One thread and repeatable examples, so that a test that fails fails again."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bits depend on how many threads torch splits a sum over."""
    torch.set_num_threads(1)
