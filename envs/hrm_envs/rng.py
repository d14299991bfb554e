# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Counter-based random numbers: a value is a function of (seed, stream, step, index), with no state.

The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014). Since there is no state, actions cannot shift a level's random numbers.
"""

import numpy as np

from hrm_envs.jit import inner

# One stream per use of a level's random numbers, so that uses are independent.
STREAM_LAYOUT, STREAM_DOOR_DUE, STREAM_DOOR_PICK, STREAM_DOOR_SPAN, STREAM_GOAL_DUE, STREAM_GOAL_PICK = range(6)
STREAM_SIZE = 6

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1342543DE82EF95)
_INDEX = np.uint64(0xA24BAED4963EE407)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_S3, _S11 = np.uint64(3), np.uint64(11)


@inner
def mix(x):
    """A bijection of uint64 in which every output bit depends on every input bit."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


mix_array = getattr(mix, "py_func", mix)  # under NUMBA_DISABLE_JIT it is the plain function already
"""``mix`` of uint64 arrays, without compiled code."""


@inner
def draw(seed, stream, step, index):
    """64 random bits for a seed, stream, step and index: uint64."""
    return mix(np.uint64(seed) + _GOLDEN * np.uint64(step) + _STREAM * np.uint64(stream) + _INDEX * np.uint64(index))


@inner
def below(bits, bound):
    """Map 64 random bits to ``0 .. bound - 1`` (bound below 2**31; the bias is below bound / 2**32)."""
    return np.int64(((bits >> _S32) * np.uint64(bound)) >> _S32)


@inner
def happens(bits, threshold):
    """True with probability ``threshold / 2**53``."""
    return np.int64(bits >> _S11) < threshold


@inner
def level_seed(env_seed, episode, split):
    """The level of an episode: the split in the two highest bits above 61 bits of hash, as a non-negative int64.

    No two splits (0 train, 1 validation, 2 development, 3 test) therefore share a level seed.
    """
    bits = mix(mix(np.uint64(env_seed) + _GOLDEN) + _STREAM * np.uint64(episode) + _INDEX)
    return np.int64((np.uint64(split) << np.uint64(61)) | (bits >> _S3))


def level_seeds(env_seeds, episodes, split):
    """``level_seed`` for int64 arrays, without compiled code: int64 of their shape."""
    bits = mix_array(mix_array(env_seeds.astype(np.uint64) + _GOLDEN) + _STREAM * episodes.astype(np.uint64) + _INDEX)
    return (np.uint64(split << 61) | (bits >> _S3)).astype(np.int64)


def draws(seeds, stream, steps, indices):
    """``draw`` for int64 arrays that broadcast, without compiled code: uint64 of their common shape."""
    stream, steps, indices = (np.atleast_1d(value).astype(np.uint64) for value in (stream, steps, indices))
    return mix_array(seeds.astype(np.uint64) + _GOLDEN * steps + _STREAM * stream + _INDEX * indices)


def all_below(bits, bound):
    """``below`` for an array of uint64, without compiled code: int64."""
    return (((bits >> _S32) * np.uint64(bound)) >> _S32).astype(np.int64)


def all_happen(bits, threshold):
    """``happens`` for an array of uint64, without compiled code: bool."""
    return (bits >> _S11).astype(np.int64) < threshold
