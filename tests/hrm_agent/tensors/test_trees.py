"""Trees of tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from hrm_agent.tensors import trees


class Pair(NamedTuple):
    obs: dict[str, Tensor]
    state: tuple[Tensor, ...] | None


def pair(start: float = 0.0) -> Pair:
    return Pair({"a": torch.arange(6.0).view(3, 2) + start, "b": torch.arange(3) + int(start)}, (torch.ones(3, 4),))


def test_a_mapped_tree_has_the_structure_of_the_first() -> None:
    made = trees.map_tensors(torch.add, pair(), pair(1.0))
    assert type(made) is Pair
    assert list(made.obs) == ["a", "b"]
    assert made.obs["b"].tolist() == [1, 3, 5]
    assert trees.map_tensors(torch.neg, [torch.ones(1), ()])[0].item() == -1
    assert trees.map_tensors(torch.neg, Pair({}, None)) == Pair({}, None)
    with pytest.raises(ValueError, match="zip"):
        trees.map_tensors(torch.add, (torch.ones(1),), ())


def test_rows_are_read_written_and_joined() -> None:
    tree = pair()
    assert [t.shape[0] for t in trees.leaves(trees.rows(tree, slice(0, 2)))] == [2, 2, 2]
    assert trees.columns({"a": torch.eye(3)}, torch.tensor([2]))["a"].tolist() == [[0.0], [0.0], [1.0]]
    joined = trees.cat([trees.rows(tree, slice(0, 1)), trees.rows(tree, slice(1, 3))])
    for whole, part in zip(trees.leaves(tree), trees.leaves(joined), strict=True):
        assert torch.equal(whole, part)
    kept = trees.clone(tree)
    trees.set_rows(kept, 1, Pair({"a": torch.zeros(2, dtype=torch.float64), "b": torch.tensor(9)}, (torch.zeros(4),)))
    assert kept.obs["b"].tolist() == [0, 9, 2]
    assert tree.obs["b"].tolist() == [0, 1, 2]
    trees.copy_into(kept, tree)
    assert kept.obs["b"].tolist() == [0, 1, 2]
    empty = trees.zeros(5, tree)
    assert [t.shape for t in trees.leaves(empty)] == [(5, 3, 2), (5, 3), (5, 3, 4)]
    assert empty.obs["b"].dtype == torch.int64


def test_names_are_those_of_checkpoints() -> None:
    tree = pair()
    named = trees.flatten("x", tree)
    assert list(named) == ["x/0/a", "x/0/b", "x/1/0"]
    assert trees.flatten("obs", tree.obs["a"]) == {"obs": tree.obs["a"]}
    assert list(trees.unflatten("x", {**named, "xy/0": torch.ones(1)})) == ["0/a", "0/b", "1/0"]


def test_arrays_are_not_copied() -> None:
    array = np.zeros(2)
    tensors = trees.to_tensors({"a": array})
    array[0] = 1
    assert tensors["a"].tolist() == [1.0, 0.0]
