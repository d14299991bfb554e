"""Frozen sets of levels: a name for exactly these levels, with a hash that detects changes.

A level is drawn from its number, so a change of the generator, of a schedule or of a default option gives other
levels under the same numbers. `level_sets.json` holds, for each name, what the levels are drawn from, a SHA-256
over what an agent and its metrics can meet on them, and how many of them are equal to another level that has been seen
before (`count_repeats`).

`python -m hrm_agent.evaluation.level_sets NAME ENV [KEY=VALUE] ...` prints the entry of a new set. `split=`, `first=`
and `count=` choose the levels (test, 0, 1000); everything else is an option of the environment.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrm_agent.environments.make import make_vector_env
from hrm_agent.environments.sources import check_stored
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import Episodes, EpisodesOrNone, Seed, Split, checked, printable, types_of
from hrm_envs import MazeVectorEnv
from hrm_envs.config import SPLITS

FILE = Path(__file__).with_name("level_sets.json")
PROBE_STEPS = 32
SEEN_BEFORE = (("validation", 0, 1000), ("development", 0, 1000), ("development", 1_000_000, 2000))
"""Levels on which agents and settings have been chosen: split, first level, count."""
USAGE = "python -m hrm_agent.evaluation.level_sets NAME ENV [split=test] [first=0] [count=1000] [OPTION=VALUE] ..."


@dataclass(frozen=True)
class LevelSet:
    """Levels `first ... first + count - 1` of a split of an environment.

    Args:
        env: id of a maze environment of `hrm_envs`.
        env_options: its keyword arguments, without `split` and `oracle`.
        split: `train`, `validation`, `development` or `test`.
        first, count: numbers of the levels.
        sha256: `hash_levels` when the set was frozen.
        repeated, same_start: `count_repeats` when the set was frozen.
    """

    env: str
    env_options: dict[str, Any] = field(default_factory=dict)
    split: Split = "test"
    first: Seed = 0
    count: Episodes = 1000
    sha256: str = ""
    repeated: EpisodesOrNone = 0
    same_start: EpisodesOrNone = 0


def find_level_set(name: str, file: Path = FILE) -> LevelSet:
    """The set of this name, whose levels are still those that were frozen.

    Raises:
        ValueError: no such set, its levels have changed, or its environment is one of another module.
    """
    entries = json.loads(file.read_text())
    if name not in entries:
        raise ValueError(f"level_set={name}: no such set{did_you_mean(name, entries)}")
    values = {"split" if key == "band" else key: value for key, value in entries[name].items()}
    levels = LevelSet(**{**values, "env": check_stored(values["env"])})
    found = hash_levels(levels)
    if found != levels.sha256:
        raise ValueError(
            f"level_set={name}: its levels have changed, their hash is {found[:12]}, expected {levels.sha256[:12]}; "
            "use the version of hrm-agent that froze them, or freeze a set under a new name"
        )
    return levels


def hash_levels(levels: LevelSet) -> str:
    """SHA-256 over what can be met on the levels, as hexadecimal digits.

    Hashed are the time limit, the earliest possible arrivals (which depend on the whole schedule of doors and
    goals), the first observations, and what `PROBE_STEPS` steps of N, E, S, W in turn give: observations, rewards,
    ends, and the oracle's distances, optimal actions and flags of change. After its end an episode counts as zeros.

    Raises:
        ValueError: an environment that is not a maze of `hrm_envs` or cannot be made, or no level.
    """
    env = _make(levels, oracle=True)
    digest = hashlib.sha256(f"{env.config.max_episode_steps}".encode())
    obs, infos = env.reset(seed=levels.first)
    if env.sides is not None:
        _add(digest, env.limits)
    _add(digest, env.clairvoyant(), obs, *_oracle(infos))
    going_on = np.ones(levels.count, bool)
    for step in range(PROBE_STEPS):
        obs, rewards, terminated, truncated, infos = env.step(np.full(levels.count, step % 4))
        _add(digest, *(_rows(values, going_on) for values in (rewards, terminated, truncated)))
        going_on &= ~(terminated | truncated)
        _add(digest, *(_rows(values, going_on) for values in (obs, *_oracle(infos))))
    env.close()
    return digest.hexdigest()


def _make(levels: LevelSet, **options: Any) -> MazeVectorEnv:
    """The environments of a set, not yet reset."""
    if levels.count < 1:
        raise ValueError(f"count={levels.count}: expected 1 or more levels")
    if not isinstance(make_vector_env(levels.env, 1, levels.env_options), MazeVectorEnv):
        raise ValueError(f"env={levels.env}: level sets are made of the mazes of hrm_envs")
    env = make_vector_env(levels.env, levels.count, {**levels.env_options, "split": levels.split, **options})
    assert isinstance(env, MazeVectorEnv)
    return env


class Contents(NamedTuple):
    """What tells levels apart, one entry a level.

    Attributes:
        starts: the first map without fog: walls, closed doors, agent and goal; of a maze in a frame, without the frame.
        wholes: a hash of that and of the schedule of doors and goal up to the time limit.
    """

    starts: list[bytes]
    wholes: list[int]


def contents_of(levels: LevelSet) -> Contents:
    """What the levels of a set hold, whatever their numbers.

    Raises:
        ValueError: see `hash_levels`.
    """
    env = _make(levels)
    env.reset(seed=levels.first)
    starts = [
        grid[top : top + rows, left : left + cols].tobytes()
        for grid, (top, left, rows, cols) in zip(env.maps(), env.windows.tolist(), strict=True)
    ]
    contents = Contents(starts, env.level_codes().tolist())
    env.close()
    return contents


def count_repeats(levels: LevelSet) -> dict[str, int]:
    """How many levels of a set are not new.

    Compared are the levels before it in the set and, of the splits that come before its own in `validation`,
    `development`, `test`, those of `SEEN_BEFORE`.

    Returns:
        `repeated`, how many are equal to one of them as a whole; `same_start`, how many have the same first map as one
        of them, whatever moves afterwards.

    Raises:
        ValueError: see `hash_levels`.
    """
    earlier = SPLITS[: SPLITS.index(levels.split)]
    before = [replace(levels, split=split, first=first, count=n) for split, first, n in SEEN_BEFORE if split in earlier]
    own, others = contents_of(levels), [contents_of(each) for each in before]
    repeated = _count_known(own.wholes, (other.wholes for other in others))
    return {"repeated": repeated, "same_start": _count_known(own.starts, (other.starts for other in others))}


def _count_known(own: Sequence[Hashable], others: Iterable[Sequence[Hashable]]) -> int:
    """How many of `own` are among the others or earlier in `own`."""
    known = {value for other in others for value in other}
    return len(own) - len(set(own) - known)


def _oracle(infos: dict[str, Any]) -> list[np.ndarray]:
    return [infos[name] for name in ("distance", "optimal_actions", "stale_optimal_actions", "changed", "material")]


def _rows(values: np.ndarray, going_on: np.ndarray) -> np.ndarray:
    """`values` with zeros in the rows of episodes that have ended, since later values are not part of a level."""
    return np.where(going_on.reshape(-1, *[1] * (values.ndim - 1)), values, np.zeros((), values.dtype))


def _add(digest: Any, *arrays: np.ndarray) -> None:
    for array in arrays:
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"|{array.dtype.name}{array.shape}|".encode())
        digest.update(np.ascontiguousarray(little_endian).data)


def freeze(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """`NAME ENV [KEY=VALUE] ...` -> the entry for `level_sets.json`.

    Raises:
        ValueError: a name or an environment is missing, an argument that is not KEY=VALUE, or see `hash_levels`.
    """
    names = [a for a in arguments if "=" not in a]
    if len(names) != 2 or arguments[:2] != names:
        raise ValueError(f"{' '.join(arguments) or 'no arguments'}: expected {USAGE}")
    values = {key: _value(text) for key, _, text in (a.partition("=") for a in arguments[2:])}
    if "band" in values:  # its former name
        values["split"] = values.pop("band")
    of_set = {key: values.pop(key) for key in ("split", "first", "count") if key in values}
    of_set = {key: checked(key, value, types_of(LevelSet)[key]) for key, value in of_set.items()}
    levels = LevelSet(names[1], values, **of_set)
    return {names[0]: {**asdict(levels), "sha256": hash_levels(levels), **count_repeats(levels)}}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> None:
    try:
        print(json.dumps(freeze(sys.argv[1:]), indent=2))
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
