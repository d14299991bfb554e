"""One environment in which a person may change things between two decisions.

Mazes of `hrm_envs` can be changed: an edge between two cells is opened or closed, the goal or the agent is put
elsewhere. Changes are made in the state of the environment, so that everything else continues as before. An edge that
was set stays as it was set until the level begins anew, whatever the schedule does there. Other environments are
stepped and draw themselves.

Positions are flat grid positions, row * width + column.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrm_agent.environments.checked import EnvironmentFailed, Guard
from hrm_agent.environments.make import make_env
from hrm_agent.evaluation.episodes import first_seed, known_options
from hrm_agent.evaluation.metrics import action_regret
from hrm_agent.evaluation.video import DRAWS, picture_of
from hrm_envs.batch import MazeBatch
from hrm_envs.cells import AGENT, DOOR, EMPTY, GOAL, UNKNOWN, WALL
from hrm_envs.cue import CueBatch
from hrm_envs.maze import MazeEnv
from hrm_envs.oracle import shortest_distances
from hrm_envs.planners import replan

CUE_ARMS, CUE_CORRIDOR = (1, 3), 2  # rows of a cue maze


class Refused(ValueError):
    """A change or a step that is not possible now; the message is one line."""


class World:
    """An environment that is played level by level.

    Args:
        env: a single environment in the wrappers that a policy needs.
        first: seed of level 0.

    Attributes:
        obs: the observation that is to be decided on.
        steps, total: of this episode: environment steps, and their undiscounted return.
        outcome: None before the episode's end, then `arrived`, `out of time` or `ended`.
        limit: steps after which episodes are cut off; None: no limit is known.
    """

    def __init__(self, env: gym.Env, first: int) -> None:
        self.env, self.first = env, first
        self.limit = None if env.spec is None else env.spec.max_episode_steps
        self._threshold = None if env.spec is None else env.spec.reward_threshold

    def begin(self, level: int) -> None:
        """The first episode of level 0, 1, ..."""
        self.seed = self.first + level
        self.obs, _ = self.env.reset(seed=self.seed)
        self.steps, self.total = 0, 0.0
        self.outcome: str | None = None

    def step(self, action: Any) -> None:
        """Raises: Refused after the episode's end; EnvironmentFailed from the environment's own exception."""
        self.check_going()
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps, self.total = self.steps + 1, self.total + float(reward)
        if terminated or truncated:
            reached = self.total > 0 if self._threshold is None else self.total >= self._threshold
            success = bool(info.get("is_success", reached))
            self.outcome = "arrived" if success else "ended" if terminated else "out of time"

    def check_going(self) -> None:
        """Raises: Refused after the episode's end."""
        if self.outcome is not None:
            raise Refused("the episode is over; begin it again, or the next level")

    def picture(self) -> str | None:
        """What the environment draws, as a `data:` URL of a PNG; None: it is drawn from its map.

        Raises:
            EnvironmentFailed: it draws nothing, or raises an exception.
        """
        file = io.BytesIO()
        try:
            Image.fromarray(picture_of(self.env, self.obs, [], None)).save(file, "PNG")
        except ValueError as error:
            raise EnvironmentFailed(str(error).replace("a video", "the page")) from error
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def close(self) -> None:
        self.env.close()


class MazeWorld(World):
    """A maze of `hrm_envs`, which a person may change.

    Attributes:
        height, width: of the grid.
        edges: where a person may open or close the way: int64, positions.
        cells: where the goal may be put: int64, positions.
        trail: where the agent has been in this episode, since it was last put elsewhere.
        regret, scored: sum of the regret of the decisions so far (`metrics.action_regret`, on the map of their
            moment), and how many had one.
        last_regret: of the last decision; None where it had none.
        changed: the times a person changed something in this episode.
    """

    def __init__(self, env: gym.Env, first: int) -> None:
        super().__init__(env, first)
        maze = env.unwrapped
        assert isinstance(maze, MazeEnv)
        self.maze, self.state = maze, maze.batch.state
        self.height, self.width = maze.config.height, maze.config.width
        self.offsets = np.array([-self.width, 1, self.width, -1], np.int32)
        self.is_fogged = getattr(maze.config, "view", "full") != "full"

    def begin(self, level: int) -> None:
        super().begin(level)
        self.walls = set(np.flatnonzero(self.state.grid[0] == WALL).tolist())
        self.edges, self.cells = self._places()
        self.set_open: dict[int, bool] = {}  # edges that a person opened or closed
        self.trail = [self.agent]
        self.regret, self.scored, self.changed = 0.0, 0, 0
        self.last_regret: float | None = None
        self.earliest = self.maze.clairvoyant()
        self.limit = self.maze.level_limit or self.limit

    def _places(self) -> tuple[list[int], list[int]]:
        batch = self.maze.batch
        if not isinstance(batch, MazeBatch):
            return [], [row * self.width + self.width - 2 for row in CUE_ARMS]
        geometry, count, inside = batch.geometry, int(self.state.open_count[0]), batch.is_inside(0)
        edges = {*geometry.edges[inside[geometry.edges]].tolist(), *self.state.open_edges[0, :count].tolist()}
        return sorted(edges), np.flatnonzero((geometry.is_cell == 1) & inside).tolist()

    @property
    def agent(self) -> int:
        return int(self.state.agent[0])

    @property
    def goal(self) -> int:
        return int(self.state.goal[0])

    def map(self) -> NDArray[np.uint8]:
        """uint8 [H, W] of `Cell` ids: everything, whatever fog and memory tests hide from the agent."""
        grid: NDArray[np.uint8] = self.state.grid[0].copy()
        if self.goal != self.agent:
            grid[self.goal] = GOAL
        return grid.reshape(self.height, self.width)

    def distances(self) -> NDArray[np.int32]:
        """Steps to the goal from every position, flat int32 [H * W], around walls and closed doors; -1: cut off."""
        grid = self.map().ravel()
        found, queue = np.empty(grid.size, np.int32), np.empty(grid.size, np.int32)
        shortest_distances(grid, self.offsets, self.state.goal[0], found, queue)
        return found

    def step(self, action: Any) -> None:
        self.check_going()
        regret = self._judge(int(action))
        super().step(action)
        self.last_regret = regret
        if regret is not None:
            self.regret, self.scored = self.regret + regret, self.scored + 1
        self.trail.append(self.agent)
        if self.set_open:
            for edge in self.set_open:  # the schedule, or an agent that left, may have changed them
                self._draw(edge)
            self._show()

    def _judge(self, action: int) -> float | None:
        grid, distances = self.map().ravel(), self.distances()
        here, around = distances[self.agent], self.agent + self.offsets
        optimal = (here > 0) & (distances[around] == here - 1)
        blocked = (grid[around] == WALL) | (grid[around] == DOOR)
        regret = float(action_regret(here, optimal, np.array(action), blocked))
        return None if np.isnan(regret) else regret

    def path(self) -> list[int]:
        """What the re-planner would walk on what the agent sees, from the agent's position on."""
        plans = replan(np.asarray(self.obs)[None])
        distances, at = plans.distances[0].ravel(), self.agent
        path = [at]
        while len(path) < distances.size:
            around = [at + int(offset) for offset in self.offsets]
            nearer = [place for place in around if 0 <= distances[place] < distances[at]]
            if not nearer:
                break
            at = nearer[0]
            path.append(at)
        return path

    def is_open(self, edge: int) -> bool:
        """Whether one can walk through an edge now."""
        return bool(self.state.grid[0, edge] not in (WALL, DOOR))

    def check_edge(self, edge: int) -> None:
        """Raises: Refused where no one may open or close the way."""
        self.check_going()
        if edge not in self.edges:
            raise Refused(f"position {edge}: no edge between two cells")
        if edge in (self.agent, self.goal):
            raise Refused(f"position {edge}: the {'agent' if edge == self.agent else 'goal'} is there")

    def set_edge(self, edge: int, is_open: bool) -> None:
        """Open the way between two cells, or close it by a door (by its wall, where a wall was).

        Raises:
            Refused: see `check_edge`.
        """
        self.check_edge(edge)
        if self._is_scheduled_open(edge) == is_open:
            self.set_open.pop(edge, None)
        else:
            self.set_open[edge] = is_open
        self._draw(edge)
        self._has_changed()

    def check_goal(self, position: int) -> None:
        """Raises: Refused where the goal cannot be put."""
        self.check_going()
        if position not in self.cells:
            raise Refused(f"position {position}: the goal can be put in a cell alone")
        if position == self.agent:
            raise Refused(f"position {position}: the agent is there")

    def put_goal(self, position: int) -> None:
        """Raises: Refused, see `check_goal`."""
        self.check_goal(position)
        before = self.goal
        self.state.goal[0] = position
        self._draw(before)
        if isinstance(self.maze.batch, MazeBatch) or self.steps == 0:  # a cue maze shows it at first alone
            self.state.grid[0, position] = GOAL
        self._has_changed()

    def check_agent(self, position: int) -> None:
        """Raises: Refused where the agent cannot be put."""
        self.check_going()
        size = self.height * self.width
        if not 0 <= position < size or self.state.grid[0, position] in (WALL, DOOR):
            raise Refused(f"position {position}: a wall, a closed door or outside; the agent needs an open position")
        if position == self.goal:
            raise Refused(f"position {position}: the goal is there")
        if isinstance(self.maze.batch, CueBatch) and position // self.width != CUE_CORRIDOR:
            raise Refused(f"position {position}: in an arm, which ends the episode; the agent needs the corridor")

    def put_agent(self, position: int) -> None:
        """Raises: Refused, see `check_agent`."""
        self.check_agent(position)
        before = self.agent
        self.state.agent[0] = position
        self._draw(before)
        self.state.grid[0, position] = AGENT
        self.trail = [position]
        self._has_changed()

    def _is_scheduled_open(self, position: int) -> bool:
        """Without what a person has set there."""
        if position in self.walls:
            return False
        if not isinstance(self.maze.batch, MazeBatch):
            return True
        return not ((self.state.doors[0] == position) & (self.state.closed[0] == 1)).any()

    def _draw(self, position: int) -> None:
        """Write what is at a position into the map, unless agent or goal is there."""
        if position in (self.agent, self.goal):
            return
        is_open = self.set_open.get(position, self._is_scheduled_open(position))
        self.state.grid[0, position] = EMPTY if is_open else WALL if position in self.walls else DOOR

    def _has_changed(self) -> None:
        self.changed += 1
        self._show()

    def _show(self) -> None:
        """The observation of the map as it is now."""
        if self.is_fogged:
            row, column = np.divmod(np.arange(self.height * self.width), self.width)
            at, across = divmod(self.agent, self.width)
            radius = int(self.maze.config.view)
            near = (np.abs(row - at) <= radius) & (np.abs(column - across) <= radius)
            self.state.shown[0] = np.where(near, self.state.grid[0], UNKNOWN)
        self.obs = self.maze.observe()

    def known_doors(self) -> list[int]:
        """Positions of doors that this level keeps, open or closed, and of those that a person set."""
        return sorted({*self.maze.batch.known_doors(0), *(e for e in self.set_open if e not in self.walls)})

    def picture(self) -> None:
        return None


def make_world(env_id: str, env_options: dict[str, Any], split: str, seed: int) -> World:
    """The environment whose levels `run_episodes` plays, ready for `begin`.

    Args:
        split: `train`, `validation`, `development` or `test`, where the environment has splits.
        seed: number of the level that is level 0 here.

    Raises:
        ValueError: it cannot be made, or, where it is no maze of `hrm_envs`, does not draw itself.
    """
    options = {name: value for name, value in env_options.items() if name not in ("oracle", "render_mode")}
    known = known_options(env_id, options)
    if "split" in known:
        options["split"] = split
    first = first_seed(known, split, seed)
    env = make_env(env_id, options)
    if isinstance(env.unwrapped, MazeEnv):
        return MazeWorld(Guard(env, env_id), first)
    env.close()
    try:
        world = World(Guard(make_env(env_id, {**options, "render_mode": "rgb_array"}), env_id), first)
    except ValueError as error:  # which without `render_mode` it was not
        raise ValueError(f"{error}; {DRAWS.replace('a video', 'the page')}") from None
    world.begin(0)
    try:
        world.picture()
    except EnvironmentFailed as error:
        world.close()
        raise ValueError(str(error)) from error
    return world
