"""Operations of torch's calls, and the bytes they read and write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Counted(NamedTuple):
    """Attributes:
    operations: of matrix products and convolutions, two for a multiply-add; elementwise work is not counted.
    bytes: that every operation reads and writes, as if none stayed in a register or a cache from one to the next.
    """

    operations: int
    bytes: int


def count(call: Callable[[], Any]) -> Counted:
    """What a call does in this thread, its backward included. Kernels that are not torch's are not seen."""
    # Only attention's plain form is made of products that the registry knows on every device.
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return Counted(counter.operations, counter.bytes)


def count_operations(call: Callable[[], Any]) -> int:
    """The operations of `count` alone."""
    return count(call).operations


class _Counter(TorchDispatchMode):
    """Not torch's FlopCounterMode, whose hooks refuse `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = flop_registry.get(func.overloadpacket)
        if operation is None:
            with self:  # in inference mode, calls made of others arrive whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if func is torch.ops.aten.convolution_backward.default:
            self.operations += _convolution_backward(*args, **kwargs)
        elif operation is not None:
            self.operations += int(operation(*args, **kwargs, out_val=out))
        if not func.is_view:
            self.bytes += _size(tree_leaves((args, kwargs))) + _size(tree_leaves(out))
        return out


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *others: Any) -> int:
    """As many as forward for each of the gradients wanted, of input and weight.

    torch's own count takes a depthwise convolution's weight for a dense one.
    """
    transposed, wanted = others[4], others[-1]
    assert not transposed
    return 2 * gradient.numel() * weight[0].numel() * sum(map(bool, wanted[:2]))


def _size(leaves: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
