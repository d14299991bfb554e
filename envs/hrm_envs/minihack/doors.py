"""The doors of one level at every step, computed by the functions of ``MazeEnv``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_envs.batch import MazeBatch
from hrm_envs.cells import AGENT, DOOR, EMPTY, GOAL
from hrm_envs.config import DOOR_PROCESSES
from hrm_envs.jit import kernel
from hrm_envs.schedule import advance_doors


@kernel
def _advance(  # type: ignore[no-untyped-def]  # a kernel: numba infers its types
    seed, step, process, p_change, threshold, open_edges, count, grid, agent, left, doors, closed, spans
):
    """Advance ``grid`` uint8 [G] from ``step - 1`` to ``step``; ``left`` is the agent's previous position."""
    if left != agent:
        # A door whose closing was delayed by the agent closes behind it.
        for k in range(len(doors)):
            if doors[k] == left and closed[k]:
                grid[left] = DOOR
    return advance_doors(
        seed, step, process, p_change, threshold, open_edges, count, grid, agent, doors, closed, spans, True
    )  # fmt: skip


class DoorSchedule:
    """A level of ``MazeEnv`` and its doors over time.

    Args:
        batch: of one maze, just reset; copied, never stepped.

    Attributes:
        grid: uint8 [H, W], walls and closed doors, without agent and goal.
        edges: int32 [E], flat positions where a door may be.
        start, goal: flat positions.
    """

    def __init__(self, batch: MazeBatch) -> None:
        state, config = batch.state, batch.config
        self.grid = state.grid[0].reshape(config.height, config.width).copy()
        self.grid[(self.grid == AGENT) | (self.grid == GOAL)] = EMPTY
        self.start, self.goal = int(state.agent[0]), int(state.goal[0])
        self.edges: NDArray[np.int32] = state.open_edges[0, : state.open_count[0]].copy()
        self._seed, self._agent, self._step = state.level_seed[0], self.start, 0
        self._process = DOOR_PROCESSES.index(config.door_process)
        self._rules: tuple[Any, ...] = (self._process, batch.rules.p_change, batch.rules.change_threshold)
        self._doors, self._closed, self._spans = (a[0].copy() for a in (state.doors, state.closed, state.spans))

    def advance(self, agent: int) -> list[tuple[int, bool]]:
        """Advance one step, with the agent at a flat position; returns the doors that changed as (position, closed)."""
        self._step += 1
        before = self.grid.copy()
        _advance(
            self._seed, self._step, *self._rules, self.edges, len(self.edges), self.grid.reshape(-1), agent,
            self._agent, self._doors, self._closed, self._spans,
        )  # fmt: skip
        self._agent = agent
        return [(int(p), bool(self.grid.flat[p] == DOOR)) for p in np.flatnonzero(self.grid != before)]
