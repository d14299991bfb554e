"""Trees of tensors: a tensor, or tuples (named ones too), lists and dictionaries of trees; None holds no tensor.

Observations, states, decisions and batches are such trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def map_tensors(function: Callable[..., Any], *trees: Any) -> Any:
    """`function` of the tensors at the same position in all trees, as a tree like the first."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: map_tensors(function, *(tree[key] for tree in trees)) for key in first}
    made = [map_tensors(function, *parts) for parts in zip(*trees, strict=True)]
    return getattr(type(first), "_make", type(first))(made)


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(part)


def clone(tree: Any) -> Any:
    return map_tensors(Tensor.clone, tree)


def to(tree: Any, device: torch.device | str) -> Any:
    return map_tensors(lambda t: t.to(device), tree)


def rows(tree: Any, index: Any) -> Any:
    """`tensor[index]` of every tensor."""
    return map_tensors(lambda t: t[index], tree)


def columns(tree: Any, index: Any) -> Any:
    """`tensor[:, index]` of every tensor."""
    return map_tensors(lambda t: t[:, index], tree)


def cat(trees: list[Any]) -> Any:
    """Trees of one structure joined along their tensors' first dimension."""
    return map_tensors(lambda *parts: torch.cat(parts), *trees)


def zeros(count: int, like: Any, device: torch.device | str | None = None) -> Any:
    """Zeros `[count, *shape]` for every tensor of a tree."""
    return map_tensors(lambda t: t.new_zeros((count, *t.shape), device=device), like)


def set_rows(tree: Any, index: Any, values: Any) -> None:
    """`tensor[index] = value` for every tensor and its value in a tree of the same structure."""
    map_tensors(lambda tensor, value: tensor.__setitem__(index, value.to(tensor)), tree, values)


def copy_into(target: Any, source: Any) -> None:
    """Overwrite the tensors of one tree with another's, without synchronising with the device."""
    map_tensors(lambda to, value: to.copy_(value, non_blocking=True), target, source)


def flatten(prefix: str, tree: Any) -> dict[str, Tensor]:
    """Named tensors, as checkpoints hold them: `prefix/key` in a dictionary, `prefix/0` in a tuple, and so on."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {name: t for key, part in parts for name, t in flatten(f"{prefix}/{key}", part).items()}


def unflatten(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix/`, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + "/")}


def to_tensors(arrays: Any, device: torch.device | str = "cpu") -> Any:
    """Arrays of a vector environment, or dictionaries of them, as tensors; on a CPU in the arrays' memory."""
    if isinstance(arrays, dict):
        return {key: to_tensors(value, device) for key, value in arrays.items()}
    return torch.as_tensor(np.require(arrays, requirements="W"), device=device)  # torch requires writable memory
