"""The single environment: a batch of one over the vector environment's kernel."""

from typing import Any

import numpy as np
from gymnasium import spaces

from hrm_envs.batch import Batch, MazeBatch, config_from
from hrm_envs.cells import Cell
from hrm_envs.config import MazeConfig
from hrm_envs.limits import LevelEnv, Unlimited
from hrm_envs.rendering import render_ansi, render_grid
from hrm_envs.vector import RENDER_MODES


class MazeEnv(LevelEnv):
    """A maze whose doors, and optionally its goal, move while the agent walks.

    ## Description
    ``rows x cols`` cells lie at the odd positions of a ``(2 * rows + 1) x (2 * cols + 1)`` grid. Between two
    neighbouring cells is an edge: open, a fixed wall, or a door. The agent moves one grid position per step, so
    from cell to cell in two steps. Doors and goal follow a schedule that depends on the level and the step
    alone, not on the actions; a door that is due to close on the agent closes when the agent has left.

    ## Action Space
    ``Discrete(4)``: 0 north, 1 east, 2 south, 3 west. A blocked move leaves the agent where it is, and is
    rewarded and counted as any other step.

    ## Observation Space
    ``Box(0, 5, (H, W), uint8)`` of ``Cell`` ids: 0 empty (or an open door), 1 wall, 2 closed door, 3 agent,
    4 goal, 5 unknown (further from the agent than ``view``).

    ## Starting State
    A new level in every episode: its size and place where there are several (``sizes``, ``canvas``), layout, doors, and
    two distinct random cells (``endpoints``) for agent and goal. With
    the ``scatter`` layout, walls never separate agent and goal at the start; doors may. Seed s determines the levels
    of all following episodes; the level of an episode is a hash of (s, episode) within ``split``.

    ## Rewards
    +1 on reaching the goal, otherwise -0.01 per step.

    ## Episode End
    Terminated when agent and goal meet: the agent moves first, then doors and goal change. Truncated after
    ``max_episode_steps`` (``hrm_envs.limits``: under ``gymnasium.make`` by its ``TimeLimit`` wrapper; with ``sizes``,
    which have a limit each, make it by ``hrm_envs.limits.make_with_own_limit``).
    ``info["is_success"]`` (the name that Stable-Baselines3 logs) says at every step whether the goal was reached.

    ## Arguments
    Those of ``MazeConfig``, and ``render_mode``: ``rgb_array`` (uint8 [h, w, 3]) or ``ansi`` (a string). With
    ``oracle=True``, ``info`` holds, of the full map even under fog: ``distance`` (shortest path in steps around
    walls and doors that are closed now, -1 if cut off), ``optimal_actions`` (bool [4]), ``changed`` (doors
    or goal changed at this step), ``material`` (the change altered distance or optimal actions at the agent)
    and ``stale_optimal_actions`` (bool [4]: those from this position on the map before this step's change).

    ## Version History
    * v0: first version.

    ## References
    ``PaperMaze`` and ``PaperFourRooms`` follow the mazes of HRM-Agent (arXiv 2510.22832), with doors that are seeded,
    visible from the first observation on and never close on the agent, and with blocked moves that count towards the
    time limit. v0 has start and goal in cells only, and random doorways; v1 has them as the authors' code: start and
    goal at any position that is not a wall, and the one map of four rooms. The authors' fixed walls are drawn one
    after another, each kept where a path remains; ours are drawn together, uniformly among sets that leave a path.

    Raises:
        ValueError: for a parameter, seed or action out of range.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012

    def _build_batch(self, parameters: dict[str, Any]) -> Batch:
        return MazeBatch(1, config_from(MazeConfig, parameters))

    def _build_spaces(self) -> tuple[spaces.Space, spaces.Space]:
        shape = (self.config.height, self.config.width)
        return spaces.Box(0, int(max(Cell)), shape, np.uint8), spaces.Discrete(4)

    @property
    def level_limit(self) -> int | None:
        """Steps after which this level is truncated, where levels have limits of their own (``sizes``); else None."""
        return int(self.batch.limits()[0]) if getattr(self.config, "sizes", None) is not None else None

    def _begin_trail(self) -> None:
        self._trail = [int(self.batch.state.agent[0])]

    def _extend_trail(self) -> None:
        self._trail.append(int(self.batch.state.agent[0]))

    def render(self) -> Any:
        """The current frame, by ``render_mode``; None without one."""
        if self.render_mode is None:
            return None
        if self.render_mode == "ansi":
            return render_ansi(self.batch.observations[0])
        return render_grid(self.batch.observations[0], trail=self._trail, doors=self.batch.known_doors(0))


make_maze = Unlimited(MazeEnv)
