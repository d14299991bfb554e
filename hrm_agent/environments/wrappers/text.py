"""Text becomes ids: of words for missions, of characters for other text."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hrm_agent.environments.wrappers.parts import Convert, PartsWrapper

# The words of MiniGrid's and BabyAI's missions (minigrid 3.2: `minigrid/envs`, `minigrid/envs/babyai/core/verifier.py`,
# colours and objects of `minigrid/core/constants.py`). New words go to the end: the id of a word never changes.
MISSION_WORDS = (
    ",", "a", "after", "and", "at", "avoid", "ball", "behind", "blue", "box", "door", "end", "fetch", "find", "from",
    "front", "get", "go", "goal", "green", "grey", "hallway", "in", "key", "lava", "left", "matching", "must", "near",
    "next", "object", "of", "on", "open", "opening", "pick", "purple", "put", "reach", "red", "right", "room", "rooms",
    "square", "the", "then", "to", "traverse", "unlock", "up", "use", "yellow", "you", "your", "wall", "floor", "agent",
)  # fmt: skip
UNKNOWN_WORD_IDS = 16  # words not listed share these, each always the same one
PADDING = 0
# "put D next to D and put D next to D, then ..." of four clauses, each D up to seven words long ("the grey ball in
# front of you"): BabyAI's space does not say how long its missions are.
MAX_BABYAI_WORDS = 4 * 17 + 2 + 2

_WORD = re.compile(r"\w+|[^\w\s]")
_WORD_IDS = {word: i for i, word in enumerate(MISSION_WORDS, start=1 + UNKNOWN_WORD_IDS)}
_NUM_WORD_IDS = 1 + UNKNOWN_WORD_IDS + len(MISSION_WORDS)


class EncodeMission(PartsWrapper):
    """Missions become the ids of their words: `MissionSpace` -> `MultiDiscrete([74] * max_words)`.

    Id 0 pads after the last word, 17 ... 73 are `MISSION_WORDS`, and other words are hashed to ids 1 ... 16.

    Args:
        env: e.g. any of MiniGrid's.
        max_words: length of a mission, beyond which words are dropped; None: the space's longest mission.
    """

    def __init__(self, env: gym.Env, max_words: int | None = None) -> None:
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words={max_words}: expected 1 or more")
        super().__init__(env, lambda space: encode_mission(space, max_words))


class EncodeText(PartsWrapper):
    """Gymnasium's texts become the ids of their characters: `Text(m)` -> `MultiDiscrete([n + 2] * m)`.

    Id 0 pads after the last character, 1 ... n are the space's characters in their order, and n + 1 is any other
    character.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, encode_text)


def encode_mission(space: gym.Space, max_words: int | None = None) -> tuple[gym.Space, Convert] | None:
    if isinstance(space, gym.spaces.Text) or not _is_text(space):
        return None
    length = max_words or _longest_mission(space)

    @lru_cache(maxsize=1024)
    def encode(mission: str) -> NDArray[np.int64]:
        ids = np.full(length, PADDING, np.int64)
        words = [word_id(word) for word in split_words(mission)[:length]]
        ids[: len(words)] = words
        ids.flags.writeable = False  # the same array is returned at every step of an episode
        return ids

    return gym.spaces.MultiDiscrete([_NUM_WORD_IDS] * length), encode


def encode_text(space: gym.Space) -> tuple[gym.Space, Convert] | None:
    if not isinstance(space, gym.spaces.Text):
        return None
    length, unknown = space.max_length, len(space.character_list) + 1
    ids_of = {character: i for i, character in enumerate(space.character_list, start=PADDING + 1)}

    def encode(text: Any) -> NDArray[np.int64]:
        ids = np.full(length, PADDING, np.int64)
        found = [ids_of.get(character, unknown) for character in str(text)[:length]]
        ids[: len(found)] = found
        return ids

    return gym.spaces.MultiDiscrete([unknown + 1] * length), encode


def split_words(text: str) -> list[str]:
    """Lower-case words and punctuation marks, in order."""
    return _WORD.findall(text.lower())


def word_id(word: str) -> int:
    """A hash of 1 or more, the same in every process, unlike Python's own."""
    known = _WORD_IDS.get(word)
    return known if known is not None else 1 + zlib.crc32(word.encode()) % UNKNOWN_WORD_IDS


def _is_text(space: gym.Space) -> bool:
    return space.dtype is not None and np.issubdtype(space.dtype, np.str_)


def _longest_mission(space: Any) -> int:
    """Words of the longest mission of a MiniGrid `MissionSpace`."""
    if not hasattr(space, "mission_func") or "BabyAI" in type(space).__name__:
        return MAX_BABYAI_WORDS
    slots = space.ordered_placeholders or []
    longest = (max(choices, key=lambda text: len(split_words(text))) for choices in slots)
    return max(1, len(split_words(space.mission_func(*longest))))
