"""Wrappers that convert observations of any environment for the encoders; `adapt` applies those that are needed.

Each wrapper turns one kind of observation into one of the kinds that `hrm_agent.policies.encoders` takes (Box,
Discrete, MultiDiscrete and a flat Dict of these) and leaves everything else alone. They wrap single environments, so
vector environments, autoreset and `final_obs` see only converted observations.

`MaskInObservation` is for environments that say which actions are legal.
"""

from hrm_agent.environments.wrappers.adapt import adapt, is_adapted
from hrm_agent.environments.wrappers.containers import FlattenDict, FlattenTuple
from hrm_agent.environments.wrappers.masks import MaskInInfo, MaskInObservation, MaskInObservationVector
from hrm_agent.environments.wrappers.minigrid import NarrowMiniGrid
from hrm_agent.environments.wrappers.numbers import BinaryToVector, FlattenFloats, FlattenMultiDiscrete, ScaleIntegers
from hrm_agent.environments.wrappers.text import MISSION_WORDS, EncodeMission, EncodeText

__all__ = [
    "MISSION_WORDS",
    "BinaryToVector",
    "EncodeMission",
    "EncodeText",
    "FlattenDict",
    "FlattenFloats",
    "FlattenMultiDiscrete",
    "FlattenTuple",
    "MaskInInfo",
    "MaskInObservation",
    "MaskInObservationVector",
    "NarrowMiniGrid",
    "ScaleIntegers",
    "adapt",
    "is_adapted",
]
