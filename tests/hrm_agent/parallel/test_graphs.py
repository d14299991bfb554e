"""`GraphedCallable` on the CPU, where `EagerReplay` stands in for a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hrm_agent.parallel.graphs import EagerReplay, GraphedCallable, graph_wrapper


def silent(text: str) -> None:
    raise AssertionError(text)


def test_every_call_gives_the_functions_results_in_one_memory() -> None:
    calls: list[int] = []

    def function(given: dict[str, Tensor], more: tuple[Tensor, ...]) -> tuple[Tensor, None, dict[str, Tensor]]:
        calls.append(1)
        return given["a"] + more[0], None, {"twice": given["a"] * 2}

    graphed = graph_wrapper(torch.device("cpu"), silent)("it", function)
    first = graphed({"a": torch.zeros(2)}, (torch.ones(2),))
    assert first[0].tolist() == [1.0, 1.0]
    second = graphed({"a": torch.full((2,), 5.0)}, (torch.ones(2),))
    assert second[0] is first[0]
    assert second[1] is None
    assert (first[0].tolist(), first[2]["twice"].tolist()) == ([6.0, 6.0], [10.0, 10.0])
    assert graphed.captured  # type: ignore[attr-defined]


def test_inputs_of_other_shapes_are_computed_without_it() -> None:
    graphed = GraphedCallable("it", lambda x: x + 1, EagerReplay(), silent)
    first = graphed(torch.zeros(2))
    other, typed = graphed(torch.zeros(3)), graphed(torch.zeros(2, dtype=torch.int64))
    assert (other.tolist(), typed.tolist()) == ([1.0] * 3, [1, 1])
    assert first.tolist() == [1.0, 1.0]
    assert graphed(torch.ones(2)) is first


def test_a_capture_leaves_the_random_state_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    graphed = GraphedCallable("it", lambda x: x + torch.rand(2), EagerReplay(), silent)
    assert torch.equal(graphed(torch.zeros(2)), expected)


def test_a_capture_that_fails_is_one_line_and_leaves_the_plain_call() -> None:
    class Fails(EagerReplay):
        def __call__(self, function: Callable[[], Any]) -> Any:
            function()
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    said: list[str] = []
    graphed = GraphedCallable("it", lambda x: x + 1, Fails(), said.append)
    assert [graphed(torch.tensor(i)).item() for i in range(3)] == [1, 2, 3]
    assert not graphed.captured
    assert said == ["cuda.graphs: it cannot be captured and runs without (operation not permitted)"]
