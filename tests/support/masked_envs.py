"""Environments that give masks of legal actions and raise where another action is taken."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

ACTIONS, PAIR, SIDE, AGENT = 5, (3, 4), 5, 3
FAULTS = {
    "empty": np.zeros(ACTIONS, np.int8),
    "short": np.ones(ACTIONS - 1, np.int8),
    "text": np.array(["1"] * ACTIONS),
    "two": np.full(ACTIONS, 2, np.int8),
    "missing": None,
}
"""Masks that are none."""


class IllegalAction(Exception):
    """Must never be raised."""


def situation(seed: int, episode: int, step: int, never: int = -1) -> tuple[int, NDArray[np.int8]]:
    """The action that is rewarded, and the mask, in which it is legal; action `never` is not."""
    random = np.random.default_rng([seed, episode, step])
    target = int(random.integers(ACTIONS))
    mask = (random.random(ACTIONS) < 0.4).astype(np.int8)
    if target == never:
        target = (target + 1) % ACTIONS
    mask[target] = 1
    if never >= 0:
        mask[never] = 0
    return target, mask


class Masked(gym.Env):
    """Shows the action that is rewarded.

    Args:
        where: `info` or `observation`, where the mask is; `both`.
        shows: `discrete`, `grid` (an agent stands on the target's row), `parts` (a Dict) or `memory`: the
            action of the step after.
        pairs: actions are two choices, MultiDiscrete.
        length: steps of an episode.
        ends: `terminated`, with a mask that allows nothing; `truncated`; or either, by the level.
        fault: of `FAULTS`, at step `at`.
        start: the first action.
        labels: infos have `optimal_actions`, of which some are not legal.
        never: an action that is never legal.
        spread: episodes are longer by 0 to this many steps, depending on the level.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        where: str = "info",
        shows: str = "discrete",
        pairs: bool = False,
        length: int = 5,
        ends: str = "either",
        fault: str = "",
        at: int = 3,
        start: int = 0,
        labels: bool = False,
        never: int = -1,
        spread: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.where, self.shows, self.pairs, self.length, self.ends = where, shows, pairs, length, ends
        self.fault, self.at, self.labels, self.render_mode = fault, at, labels, render_mode
        self.never, self.spread = never, spread
        self.action_space = gym.spaces.MultiDiscrete(PAIR) if pairs else gym.spaces.Discrete(ACTIONS, start=start)
        self.seen_space = {
            "discrete": gym.spaces.Discrete(ACTIONS),
            "memory": gym.spaces.Discrete(ACTIONS),
            "grid": gym.spaces.Box(0, 5, (SIDE, SIDE), np.uint8),
            "parts": gym.spaces.Dict(target=gym.spaces.Discrete(ACTIONS), time=gym.spaces.Box(0, 1, (1,), np.float32)),
        }[shows]
        self.bits = sum(PAIR) if pairs else ACTIONS
        self.observation_space = self.seen_space
        if where != "info":
            entry = gym.spaces.Box(0, 1, (self.bits,), np.int8)
            own = dict(self.seen_space) if shows == "parts" else {"observation": self.seen_space}
            self.observation_space = gym.spaces.Dict({**own, "action_mask": entry})
        self.seed, self.episode, self.steps = 0, -1, 0
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode, self.steps = (0 if seed is not None else self.episode + 1), 0
        self.seed = self.seed if seed is None else seed
        self._draw()
        return self._see(False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        chosen = np.asarray(action)
        self.taken.append(chosen)
        if self.pairs:
            legal = self.mask[chosen[0]] and self.mask[PAIR[0] + chosen[1]]
            reward = float(chosen[0] == self.target % PAIR[0])
        else:
            number = int(chosen) - int(self.action_space.start)
            legal, reward = self.mask[number], float(number == self.target)
        if not legal:
            raise IllegalAction(f"{action} with {self.mask}")
        self.steps += 1
        over = self.steps == self.length + (self.seed + self.episode) % (self.spread + 1)
        by_level = self.ends == "either" and (self.seed + self.episode) % 2 == 0
        terminated = over and (self.ends == "terminated" or by_level)
        self._draw()
        if terminated:
            self.mask = np.zeros_like(self.mask)
        obs, info = self._see(terminated)
        return obs, reward, terminated, over and not terminated, {**info, "is_success": reward > 0}

    def render(self) -> NDArray[np.uint8]:
        return np.zeros((20, 20, 3), np.uint8)

    def _draw(self) -> None:
        self.target, mask = situation(self.seed, self.episode, self.steps, self.never)
        following = situation(self.seed, self.episode, self.steps + 1, self.never)[0]
        self.shown = following if self.shows == "memory" else self.target
        if self.pairs:
            first, second = np.resize(mask, PAIR[0]), np.resize(mask[::-1], PAIR[1])
            first[self.target % PAIR[0]] = second[self.steps % PAIR[1]] = 1
            mask = np.concatenate([first, second])
        self.mask = mask

    def _see(self, terminated: bool) -> tuple[Any, dict[str, Any]]:
        seen: Any = np.int64(self.shown)
        if self.shows == "grid":
            seen = np.zeros((SIDE, SIDE), np.uint8)
            seen[self.shown, 2] = AGENT
        if self.shows == "parts":
            seen = {"target": np.int64(self.shown), "time": np.array([self.steps / self.length], np.float32)}
        mask: Any = FAULTS[self.fault] if self.fault and self.steps == self.at else self.mask.copy()
        given = {} if mask is None else {"action_mask": mask}
        info = given if self.where in ("info", "both") else {}
        if self.labels:
            info = {**info, "optimal_actions": np.arange(ACTIONS) % 2 == self.target % 2}  # some are not legal
        if self.where != "info":
            seen = {**(seen if self.shows == "parts" else {"observation": seen}), **given}
        return seen, info


class MaskedVector(VectorEnv):
    """`Masked` as a vector of its own, which keeps its state: episodes of five steps."""

    def __init__(self, num_envs: int, where: str = "info", fault: str = "") -> None:
        self.num_envs, self.where, self.fault = num_envs, where, fault
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Discrete(ACTIONS)
        if where == "observation":
            self.single_observation_space = gym.spaces.Dict(
                target=gym.spaces.Discrete(ACTIONS), action_mask=gym.spaces.MultiBinary(ACTIONS)
            )
        self.single_action_space = gym.spaces.Discrete(ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.seeds, self.episodes, self.steps = (np.zeros(num_envs, np.int64) for _ in range(3))

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Any, dict]:
        self.seeds = np.arange(self.num_envs) + (0 if seed is None else seed)
        self.episodes[:], self.steps[:] = 0, 0
        self._draw()
        return self._see(self.targets, self.masks)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        rows = np.arange(self.num_envs)
        if not self.masks[rows, actions].all():
            raise IllegalAction(f"{actions} with {self.masks}")
        rewards = (np.asarray(actions) == self.targets).astype(np.float64)
        self.steps += 1
        ended = self.steps == 5
        terminated = ended & ((self.seeds + self.episodes) % 2 == 0)
        self._draw()
        final, final_masks = self.targets.copy(), np.where(terminated[:, None], 0, self.masks).astype(np.int8)
        self.steps[ended], self.episodes = 0, self.episodes + ended
        self._draw()
        if self.fault == "empty":
            self.masks[-1] = 0
        obs, infos = self._see(self.targets, self.masks)
        if ended.any():
            last, info = self._see(final, final_masks)
            if isinstance(last, dict):
                last = np.array([{key: value[row] for key, value in last.items()} for row in rows], object)
            infos |= {"final_obs": last, "final_info": info, "_final_info": ended}
            infos["episode"] = {"r": rewards, "l": np.full(self.num_envs, 5), "success": rewards > 0}
            infos["_episode"] = ended
        return obs, rewards, terminated, ended & ~terminated, infos

    def _draw(self) -> None:
        drawn = [situation(*map(int, key)) for key in zip(self.seeds, self.episodes, self.steps, strict=True)]
        self.targets = np.array([target for target, _ in drawn])
        self.masks = np.stack([mask for _, mask in drawn])

    def _see(self, targets: NDArray, masks: NDArray) -> tuple[Any, dict[str, Any]]:
        if self.where == "observation":
            return {"target": targets, "action_mask": masks.copy()}, {}
        return targets, {"action_mask": masks.copy()}

    def get_state(self) -> dict[str, NDArray]:
        return {"seeds": self.seeds, "episodes": self.episodes, "steps": self.steps}

    def set_state(self, state: dict[str, NDArray]) -> None:
        self.seeds, self.episodes, self.steps = (state[name].copy() for name in ("seeds", "episodes", "steps"))
        self._draw()


gym.register("Masked-v0", entry_point="masked_envs:Masked")
gym.register("MaskedVector-v0", entry_point="masked_envs:Masked", vector_entry_point="masked_envs:MaskedVector")
