"""Our agents in the mazes of the HRM-Agent paper as its authors' own code makes them, with nothing changed but the
characters.

    python -m experiments.authors_maze.play code=FOLDER [agent=ID] [run=FOLDER ...] [episodes=300] [world=maze|rooms]

`code` is a checkout of the authors' repository (https://github.com/LongDangHoang/HRM_RL_Agent), which is imported from
there. An agent sees the characters of the map as ids of cells; its actions go to their environment as they are. Each
plays greedily, then with sampled actions; the levels are seeded (NLE, and Python's generator, which draws the doors).
An episode is over after 80 steps of the agent, as in their training loop. The breadth-first re-planner and random
actions play the same levels. Records go to `results.json`, by agent and world. Needs the extra `minihack`.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import hrm_agent
from experiments.engine.machine import commit_of_code, git, processor
from experiments.engine.pages import draw
from experiments.engine.records import put
from hrm_agent.agents.agent import Agent
from hrm_agent.evaluation.metrics import wilson_interval
from hrm_envs.cells import DOOR, EMPTY, WALL, Cell
from hrm_envs.planners import ReplanPolicy

HERE = Path(__file__).resolve().parent
LIMIT = 80
WORLDS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "maze": ("MiniHack-Corridor-Maze-4-Way-Dynamic", {}, (11, 13)),
    "rooms": ("MiniHack-4-Rooms", {"action-space": 4, "p-change-doors": 0.05}, (13, 13)),
}
"""The id, its options and the size of its map. The rooms' doors stand still by default; the paper has 0.05."""
CHARACTERS = {"|": WALL, "-": WALL, ".": EMPTY, "<": EMPTY, "#": DOOR, "@": Cell.AGENT, ">": Cell.GOAL}

Play = Callable[[NDArray[np.uint8], bool], int]
"""The action for an observation [H, W]; whether it is the first of an episode."""


def translate(characters: NDArray[np.uint8], world: str, closed: list[list[int]]) -> NDArray[np.uint8]:
    """The map as ids of cells. A closed door of the rooms is drawn as a wall; which are doors, their code knows."""
    table = np.full(256, WALL, np.uint8)
    for character, cell in CHARACTERS.items():
        table[ord(character)] = cell
    cells = table[characters]
    height, width = WORLDS[world][2]
    rows, cols = np.nonzero(characters != ord(" "))
    top, left = rows.min(), cols.min()
    if world == "rooms":
        for row, col in closed:
            if cells[row, col] == WALL:
                cells[row, col] = DOOR
    return cells[top : top + height, left : left + width]


def build(code: Path, world: str) -> gym.Env:
    """Their environment.

    Raises:
        SystemExit: no such code, or what it needs is missing.
    """
    if not (code / "rl" / "environment.py").is_file():
        raise SystemExit(f"error: code={code}: expected a checkout of HRM_RL_Agent, with rl/environment.py")
    sys.path.insert(0, str(code))
    warnings.filterwarnings("ignore")
    try:
        import rl.environment  # noqa: F401 - registers them
    except ImportError as error:
        raise SystemExit(f"error: {error}; pip install 'hrm-agent[minihack]'") from None
    name, options, _ = WORLDS[world]
    return gym.make(
        name, observation_keys=("chars",), max_episode_steps=10 * LIMIT, disable_env_checker=True, **options
    )


def episode(env: gym.Env, world: str, seed: int, play: Play) -> tuple[bool, int]:
    """Whether one episode reached the goal, and its steps."""
    random.seed(seed)
    inner: Any = env.unwrapped
    inner.seed(seed, seed, False)  # `reset(seed=...)` does not reach NetHack here
    observation, _ = env.reset()
    for step in range(LIMIT):
        doors = inner.door_pos_closed if step else []  # their first observation has none yet
        action = play(translate(observation["chars"], world, doors), step == 0)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            return bool(terminated), step + 1
    return False, LIMIT


def of_agent(agent: Agent, deterministic: bool) -> Play:
    state: Any = None

    def play(observation: NDArray[np.uint8], start: bool) -> int:
        nonlocal state
        action, state = agent.predict(observation, None if start else state, start, deterministic)
        return int(action)

    return play


def replanner() -> Play:
    policy = ReplanPolicy()
    return lambda observation, start: int(policy.act(observation[None])[0])


def at_random() -> Play:
    generator = np.random.default_rng(0)
    return lambda observation, start: int(generator.integers(4))


def measure(env: gym.Env, world: str, play: Play, episodes: int) -> dict[str, Any]:
    played = [episode(env, world, seed, play) for seed in range(episodes)]
    won = sum(success for success, _ in played)
    return {
        "success": won / episodes,
        "success_ci95": list(wilson_interval(won, episodes)),
        "steps_of_successes": float(np.mean([steps for success, steps in played if success])) if won else None,
        "outcomes": "".join("01"[success] for success, _ in played),
    }


def main() -> None:
    given = [argument.partition("=")[::2] for argument in sys.argv[1:]]
    options = {"episodes": "300", "world": "maze", **dict(given)}
    unknown = options.keys() - {"code", "agent", "run", "episodes", "world"}
    if unknown or "code" not in options or options["world"] not in WORLDS:
        raise SystemExit(f"error: {' '.join(sys.argv[1:])}: expected code=FOLDER, as in the head of this file")
    world, code = options["world"], Path(options["code"])
    players: dict[str, tuple[Agent | Play, dict[str, Any]]] = {}
    for key, name in given:
        if key in ("agent", "run"):
            agent = hrm_agent.make(name) if key == "agent" else Agent.load(name)
            trained = {k: agent.info.get(k) for k in ("env", "core", "carry", "segments", "frames", "seed")}
            parameters = sum(p.numel() for p in agent.policy.parameters())
            label = name if key == "agent" else f"{trained['env']}, seed {trained['seed']}"
            players[label] = agent, {"trained": trained, "parameters": parameters}
    players |= {"bfs_replanner": (replanner(), {}), "random": (at_random(), {})}
    env, records = build(code, world), []
    typed = [f"{k}={'HRM_RL_Agent' if k == 'code' else v}" for k, v in given if k != "run"]
    about = {
        "command": "python -m experiments.authors_maze.play " + " ".join(typed),
        "commit": commit_of_code(),
        "authors_commit": git(code, "rev-parse", "--short", "HEAD") or "unknown",
        "processor": processor(),
    }
    for name, (player, of_it) in players.items():
        record = {"agent": name, "world": world, **of_it, "episodes": int(options["episodes"])}
        greedy = of_agent(player, True) if isinstance(player, Agent) else player
        record |= measure(env, world, greedy, record["episodes"])
        if isinstance(player, Agent):
            player.generator.manual_seed(0)
            record["sampled"] = measure(env, world, of_agent(player, False), record["episodes"])
        records.append({**record, **about})
        print({k: records[-1][k] for k in ("agent", "world", "success", "success_ci95")}, flush=True)
        put(HERE / "results.json", records[-1:], ("agent", "world"))
    draw(HERE)


if __name__ == "__main__":
    main()
