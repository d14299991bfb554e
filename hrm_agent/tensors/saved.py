"""Whether what a checkpoint holds can have been saved by a run, checked before any of it is used.

A checksum protects against accidents only. Compiled code reads optimizer moments, generators and indices without
looking at their sizes, so that a forged file would read or write memory of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor

Record = TypeVar("Record")

MOST = 2**62
Total = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
"""Frames, steps or updates so far."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What an optimizer keeps for a parameter."""
_WORDS = 624
"""Of a Mersenne Twister's state."""


def describe(tensor: Tensor) -> str:
    """Dtype and shape of a tensor: `float32[3, 4]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def check_tensors(what: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], rows: int = -1) -> None:
    """Check that tensors have the names, dtypes and shapes of others, that floats are finite and bools 0 or 1.

    Args:
        what: they are, for messages.
        given: of a file, on the CPU.
        expected: on any device.
        rows: expected first dimension of all; -1: that of the expected one.

    Raises:
        ValueError: the message names the first that differs.
    """
    for name in (*expected, *given):
        place = f"{what} {name}".strip()
        if name not in given:
            raise ValueError(f"{place} is missing")
        if name not in expected:
            raise ValueError(f"{place} is unknown; expected {', '.join(expected) or 'nothing'}")
        check_tensor(place, given[name], expected[name], rows)


def check_tensor(what: str, given: Tensor, expected: Tensor, rows: int = -1) -> None:
    """`check_tensors` of one tensor."""
    shape = expected.shape if rows < 0 else torch.Size((rows, *expected.shape[1:]))
    if given.dtype != expected.dtype or given.shape != shape:
        wanted = describe(torch.empty(shape, dtype=expected.dtype, device="meta"))
        raise ValueError(f"{what} is {describe(given)}, expected {wanted}; restore with the settings it was saved with")
    if given.dtype == torch.bool:
        # Any other byte is undefined in compiled code.
        check_range(f"{what} as bytes", given.view(torch.uint8), 0, 1)
    elif (given.is_floating_point() or given.is_complex()) and not torch.isfinite(given).all():
        raise ValueError(f"{what} has entries that are NaN or infinite")


def check_range(what: str, given: Tensor, low: float, high: float) -> None:
    """Check that all numbers are from `low` to `high`.

    Raises:
        ValueError: the message names one that is not.
    """
    if given.numel() == 0:
        return
    least, most = (bound.item() for bound in given.aminmax())
    if not low <= least <= most <= high:
        wrong = least if not least >= low else most
        raise ValueError(f"{what}: {wrong} is not from {low} to {high}")


def check_generator(what: str, given: Tensor | None) -> None:
    """Check the state of a `torch.Generator` on the CPU; torch itself would draw from behind its end.

    Raises:
        ValueError: it is missing, or no generator can be in this state.
    """
    if given is None:
        raise ValueError(f"{what} is missing")
    probe = torch.Generator()
    own = probe.get_state()
    check_tensor(what, given, own)
    try:
        probe.set_state(given.clone())
    except RuntimeError:
        raise ValueError(f"{what}: no generator can be in this state") from None
    # As many words are left as were not drawn, or all are to be made anew.
    left, following = _position(given)
    if _position(own) == (1, 0) and (left, following) != (1, 0) and left + following != _WORDS + 1:
        raise ValueError(f"{what}: {left} words left after {following}, no generator can be in this state")


def _position(state: Tensor) -> tuple[int, int]:
    """Words that are left and the next one, of torch's `CPUGeneratorImplStateLegacy`."""
    data = state.contiguous().numpy()
    return int(data[8:12].view(np.int32)[0]), int(data[16:24].view(np.uint64)[0])


def check_moments(parameters: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Check an optimizer's tensors by `INDEX/NAME`: for each parameter all `MOMENTS` of its shape, or none.

    Raises:
        ValueError: they belong to other parameters, or are none that an optimizer computes.
    """
    kept: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        kept.setdefault(index, {})[key] = tensor
    numbers = {str(number): parameter for number, parameter in enumerate(parameters)}
    for index, moments in kept.items():
        if index not in numbers:
            raise ValueError(f"optimizer {index}: expected the number of one of {len(numbers)} parameters")
        parameter = numbers[index]
        expected = dict(zip(MOMENTS, (torch.tensor(0.0), parameter, parameter), strict=True))
        check_tensors(f"optimizer {index}", moments, expected)
        check_range(f"optimizer {index} step", moments["step"], 0, 2**24)
        check_range(f"optimizer {index} exp_avg_sq", moments["exp_avg_sq"], 0, float("inf"))


def converted(what: str, value: Any, kind: type[Record]) -> Record:
    """A part of a checkpoint's metadata as a type of msgspec.

    Raises:
        ValueError: the message names the place, and what was expected there.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{what}: {str(error).replace('`', '')}") from None


def check_total(what: str, value: Any) -> None:
    """Check a count of frames, steps or updates.

    Raises:
        ValueError: it is no integer, or out of range.
    """
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError(f"{what}={value!r}: expected an integer from 0 to {MOST}")
