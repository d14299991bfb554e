"""The environment: a dynamic maze in NetHack."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hrm_envs.batch import MazeBatch, check_seeds, config_from
from hrm_envs.cells import MOVES, Cell
from hrm_envs.config import MazeConfig, check_choice
from hrm_envs.kernel import GOAL_REWARD, STEP_REWARD
from hrm_envs.limits import LevelEnv, Unlimited
from hrm_envs.minihack.des_file import MAX_DOORS, MAX_HEIGHT, MAX_WIDTH, write_des_file
from hrm_envs.minihack.doors import DoorSchedule
from hrm_envs.minihack.glyphs import build_translation, translate
from hrm_envs.minihack.terrain import Terrain
from hrm_envs.rendering import render_grid
from hrm_envs.vector import RENDER_MODES

# NetHack's options: no prompts, no pickup, no pet, and a closed door stays closed when walked into.
_OPTIONS = ("nobones", "nolegacy", "nocmdassist", "nosparkle", "runmode:teleport", "mention_walls",
            "!autopickup", "!autoopen", "pettype:none")  # fmt: skip
_NO_LIMIT = 10**9
# Any level: the actual one is compiled at reset.
_FIRST_LEVEL = write_des_file(np.array([[1] * 4, [1, 0, 0, 1], [1] * 4], np.uint8), (), (1, 1), (1, 2))


def build_game() -> Any:
    """A MiniHack task with the moves N, E, S, W that ends on the stairs down and keeps its last screen.

    Raises:
        ModuleNotFoundError: MiniHack is not installed; the message says how to install it.
    """
    missing = [name for name in ("nle", "minihack", "pkg_resources") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the MiniHack mazes need {missing[0]}, which is not installed; install the extra: "
            "pip install 'hrm-agent[minihack]'",
            name=missing[0],
        )
    from minihack.navigation import MiniHackNavigation
    from nle import nethack

    class Game(MiniHackNavigation):
        def _quit_game(self, observation: Any, done: bool) -> None:
            """Do nothing: the prompts at the end of a game would overwrite the last screen."""

    compass = nethack.CompassDirection
    return Game(
        des_file=_FIRST_LEVEL,
        observation_keys=("glyphs", "tty_chars", "blstats"),
        actions=(compass.N, compass.E, compass.S, compass.W),
        options=_OPTIONS,
        max_episode_steps=_NO_LIMIT,  # counted by MiniHackMazeEnv, because NLE would count redraws
    )


class MiniHackMazeEnv(LevelEnv):
    """``MazeEnv`` in NetHack, with the same levels.

    ## Description
    The level of ``MazeEnv`` with the same parameters, seed and episode is written as a des-file, which NetHack loads:
    its walls, a doorway on every edge without a wall, a NetHack door in every closed doorway, stairs down as the goal.
    Doors close and open on the schedule of ``MazeEnv``: the game's doors are changed between two moves
    (``hrm_envs.minihack.terrain``).

    ## Action Space
    ``Discrete(4)``: 0 north, 1 east, 2 south, 3 west, sent as NetHack's keys.

    ## Observation Space
    ``Box(0, 5, (H, W), uint8)`` of ``Cell`` ids, translated from NetHack's glyphs. The whole map is known.

    ## Rewards, Starting State, Episode End
    As in ``MazeEnv``, but NetHack decides whether the stairs were reached. ``RuntimeError`` if a game ends in any
    other way, which nothing in these levels can cause.

    ## Arguments
    Those of ``MazeConfig`` with ``view="full"``, ``goal_process="static"`` and ``oracle=False``, on mazes of at most
    9 x 37 cells and 120 edges without a wall. ``render_mode``: ``rgb_array``, or ``ansi`` for NetHack's own screen.

    ## Differences from ``MazeEnv``
    NetHack's clock stops while a move is blocked; the environment counts the step. An open door is an empty
    doorway, as in ``MazeEnv``, not NetHack's open door. There is no ``get_state`` and no ``set_state``.

    ## Version History
    * v0: first version.

    ## References
    MiniHack: arXiv 2109.13202. NetHack Learning Environment: arXiv 2006.13760.

    Raises:
        ValueError: for a parameter, seed or action out of range.
        ModuleNotFoundError: without the extra ``minihack``.
    """

    batch: MazeBatch
    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **parameters: Any) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        config = config_from(MazeConfig, parameters)
        _check_fits(config)
        self.batch = MazeBatch(1, config)  # generates the levels; never stepped
        shape = (self.config.height, self.config.width)
        self.observation_space = spaces.Box(0, int(max(Cell)), shape, np.uint8)
        self.action_space = spaces.Discrete(4)
        self._game = build_game()
        self._cell_of = build_translation()
        self._playing = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin episode 0 of ``seed``, or the next episode if it is None. ``options`` is not used."""
        if seed is not None:
            check_seeds(seed, 1)
        super().reset(seed=seed)
        self._playing = False  # if NetHack rejects the level, step() raises instead of playing the game before
        self.batch.reset(seed, None if seed is not None else self.np_random)
        level = self._doors = DoorSchedule(self.batch)
        width = self.config.width
        start, goal = divmod(level.start, width), divmod(level.goal, width)
        self._game.update(write_des_file(level.grid, level.edges, start, goal))
        seed_of_game = self.level_seed % 2**31
        self._game.seed(seed_of_game, seed_of_game)  # of all that NetHack draws, such as the hero's strength
        self._game.reset()
        self._read_screen(self._game.last_observation)
        self._corner = (self._at[0] - start[1], self._at[1] - start[0])
        self._terrain = Terrain(self._game.nethack.dlpath)
        self._terrain.check(level.grid, level.edges, self._to_nethack(0))
        self._steps, self._playing = 0, True
        return self.observe(), {}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move, then advance the doors.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, and after an episode's end.
            ValueError: for an action that is not 0, 1, 2 or 3.
        """
        if not self._playing:
            raise gymnasium.error.ResetNeeded("no episode is in progress; call reset() before step()")
        if np.ndim(action) != 0 or np.asarray(action).dtype.kind not in "iu" or not 0 <= int(action) < len(MOVES):
            raise ValueError(f"action={action!r} is not 0, 1, 2 or 3; give N, E, S or W")
        _, _, ended, _, info = self._game.step(int(action))
        self._steps += 1
        self._read_screen(self._game.last_observation)
        arrived = info["end_status"] == self._game.StepStatus.TASK_SUCCESSFUL
        if ended and not arrived:
            raise RuntimeError(f"NetHack ended the game at step {self._steps}: {info['end_status']!r}")
        if not arrived:
            self._move_doors()
        truncated = not arrived and self._steps >= self.config.max_episode_steps
        self._playing = not (arrived or truncated)
        return self.observe(), GOAL_REWARD if arrived else STEP_REWARD, arrived, truncated, {"is_success": arrived}

    def observe(self) -> NDArray[np.uint8]:
        """The current observation uint8 [H, W]."""
        (x, y), (height, width) = self._corner, self.observation_space.shape  # type: ignore[misc]
        return translate(self._glyphs[y : y + height, x : x + width], self._cell_of)

    def _move_doors(self) -> None:
        (x, y), (left, top) = self._at, self._corner
        changes = self._doors.advance((y - top) * self.config.width + x - left)
        for position, closed in changes:
            self._terrain.set_door(*self._to_nethack(position), closed)
        if changes:
            from nle import nethack

            observation, _ = self._game.nethack.step(int(nethack.Command.REDRAW))  # takes no game time
            self._read_screen(observation)

    def _to_nethack(self, position: int) -> tuple[int, int]:
        """NetHack's (x, y) of a flat position. NLE omits NetHack's first column, which is unused."""
        row, col = divmod(position, self.config.width)
        return self._corner[0] + col + 1, self._corner[1] + row

    def _read_screen(self, observation: tuple[NDArray, ...]) -> None:
        """Copy what is needed of NLE's observation; the next key overwrites its buffers."""
        seen = dict(zip(self._game._observation_keys, observation, strict=True))
        self._glyphs, self._screen = seen["glyphs"].copy(), seen["tty_chars"]
        self._at = (int(seen["blstats"][0]), int(seen["blstats"][1]))

    def render(self) -> Any:
        """The current frame, by ``render_mode``; None without one."""
        if self.render_mode is None or not hasattr(self, "_glyphs"):
            return None
        if self.render_mode == "ansi":
            return "\n".join(bytes(line).decode("latin-1").rstrip() for line in self._screen)
        return render_grid(self.observe())

    def close(self) -> None:
        """End the game and remove NLE's temporary files."""
        self._playing = False
        self._game.close()


make_minihack_maze = Unlimited(MiniHackMazeEnv)


def _check_fits(config: MazeConfig) -> None:
    """Raises: ValueError for a maze that NetHack cannot hold."""
    if config.is_framed:
        raise ValueError("sizes and canvas are not supported in NetHack; leave them out")
    for name, wanted in (("view", "full"), ("goal_process", "static"), ("oracle", False)):
        if getattr(config, name) != wanted:
            raise ValueError(f"{name}={getattr(config, name)!r} is not supported in NetHack; use {name}={wanted!r}")
    if config.height > MAX_HEIGHT or config.width > MAX_WIDTH:
        raise ValueError(
            f"rows={config.rows}, cols={config.cols} is too large for a NetHack level; use at most "
            f"{MAX_HEIGHT // 2} rows and {MAX_WIDTH // 2} columns"
        )
    passages = {"scatter": config.edges - int(config.walls or 0), "braid": config.edges}.get(config.layout, 4)
    if passages > MAX_DOORS:
        raise ValueError(
            f"rows={config.rows}, cols={config.cols} has up to {passages} places for doors, a NetHack level at most "
            f"{MAX_DOORS}; use a smaller maze"
        )
