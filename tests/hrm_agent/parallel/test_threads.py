"""How many threads torch uses, counted: threads of the operating system, which OpenMP starts when it needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from hrm_agent.agents.agent import Agent
from hrm_agent.parallel.threads import one_thread
from tiny import ACTIONS, GRID, tiny_policy

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info(), reason="counts OpenMP's threads"
)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads_started(work: Callable[[], Any], count: int = 2) -> int:
    """How many threads `work` starts in a thread of its own, which has none yet and may use `count`."""
    started: list[int] = []

    def run() -> None:
        torch.set_num_threads(count)
        before = set(os.listdir("/proc/self/task"))
        work()
        started.append(len(set(os.listdir("/proc/self/task")) - before))
        started.append(torch.get_num_threads())

    thread = Thread(target=run)
    thread.start()
    thread.join()
    new, after = started
    assert after == count  # as it was
    return new


def product() -> None:
    torch.randn(1, 25, 64) @ torch.randn(64, 128)


def test_one_thread_is_one_thread_and_only_in_the_body() -> None:
    def both() -> None:
        before = os.listdir("/proc/self/task")
        with one_thread():
            product()
        assert os.listdir("/proc/self/task") == before
        product()

    if threads_started(product) == 0:
        pytest.skip("this build of torch divides no product of so few rows")
    assert threads_started(both) == 1
    with one_thread():
        assert torch.get_num_threads() == 1


def test_a_body_that_raises_gives_the_threads_back() -> None:
    def raises() -> None:
        with pytest.raises(KeyError), one_thread():
            raise KeyError

    assert threads_started(raises) == 0


@pytest.mark.parametrize("core", ["trm", "hrm", "gru"])
def test_a_decision_of_few_rows_uses_the_calling_thread_alone(core: str) -> None:
    agent = Agent(tiny_policy(core=core), GRID, ACTIONS)
    observation = np.zeros(GRID.shape, np.uint8)
    observation[3, 3] = 3

    def decide() -> None:
        state = None
        for _ in range(2):
            _, state = agent.predict(observation, state)
        agent.predict(np.stack([observation] * 8))

    assert threads_started(decide) == 0


def test_a_large_batch_may_be_divided() -> None:
    agent = Agent(tiny_policy(), GRID, ACTIONS)
    agent.policy._chunk_sizes["cpu"] = 7  # rows that are few
    observation = np.zeros((8, *GRID.shape), np.uint8)
    observation[:, 3, 3] = 3
    counts: list[int] = []
    step = agent.policy.step
    agent.policy.step = lambda *given: counts.append(torch.get_num_threads()) or step(*given)  # type: ignore
    threads_started(lambda: (agent.predict(observation), agent.predict(observation[:7])))
    assert counts == [2, 1]
