"""One policy trained by many processes, each with its own share of the environments (`torchrun`).

Every process holds the whole policy and optimizer and takes the same steps: gradients are summed over the processes,
and random numbers are drawn for all of them from one stream, of which each uses its part. So a run on R processes
equals the run on one, up to the rounding of sums. The rest of the toolkit uses `Processes`; with one process its
methods return their arguments, without torch.distributed.

Two groups: small or CPU data go through gloo, gradients through the backend of their device (gloo on the CPU, nccl on
CUDA). Nothing is pickled: text, files and objects are sent as bytes of known shape.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hrm_agent.tensors.gradients import NonFiniteNumbers

TIMEOUT = timedelta(hours=6)
"""Long enough for work that one process does while others wait, such as rendering videos. It only concerns a process
that hangs; one that dies is detected at once."""
JOIN_VARIABLE = "HRM_AGENT_JOIN_TIMEOUT"
"""Environment variable: seconds that a process waits at its start until all others have started."""
JOIN_SECONDS = 300.0


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


class ProcessesDiverged(RuntimeError):
    """The processes' weights differ; the run cannot continue."""


class Processes:
    """The processes that train one policy, seen from one of them. This class is for a single process.

    Attributes:
        rank, size: rank of this process and number of processes, `0 <= rank < size`.
        begun: rank 0 has announced the run to the others.
    """

    rank = 0
    world_size = 1
    begun = False

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which alone writes files and prints."""
        return self.rank == 0

    def local_slice(self, count: int) -> slice:
        """This process's part of `range(count)`; parts are contiguous, in the order of the processes."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def local_rows(self, rows: Tensor) -> Tensor:
        """This process's part of the global rows `[N, ...]`."""
        return rows[self.local_slice(len(rows))]

    def pad_to_global(self, rows: Tensor) -> Tensor:
        """This process's rows `[n, ...]` in their place among the global rows `[N, ...]`; the others are zero.

        For functions that draw random numbers per row: all processes then draw the same. `n` is the same everywhere.
        """
        return rows

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over the processes, of a tensor of the same shape everywhere."""
        return values

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], measured: dict[str, float]) -> dict[str, float]:
        """Replace every gradient by its sum over the processes, and return the sums of `measured`."""
        return measured

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes `[N, ...]` on rank 0, from `[n, ...]`, `n` the same everywhere; zeros elsewhere."""
        return rows

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes `[M, c]` on all, by rank, from `[m, c]`; `m` may differ."""
        return rows

    def agree(self, number: float, flag: bool) -> tuple[float, bool]:
        """The number of rank 0, and whether the flag is set on any process."""
        return number, flag

    def broadcast_object(self, value: Any) -> Any:
        """The object of rank 0; JSON."""
        return value

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""

    def check_equal(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raises: ProcessesDiverged, everywhere, unless all processes hold the same bits."""

    def device(self, name: str) -> str:
        """The device of this process, for a run with device `name`."""
        return name

    @contextmanager
    def raising_together(self) -> Iterator[None]:
        """If the body raises NonFiniteNumbers in one process, raise it in all."""
        yield

    def barrier(self) -> None:
        """Wait for all processes."""

    def leave(self) -> None:
        """Leave the group; no communication is possible afterwards."""


SINGLE_PROCESS = Processes()


class TorchProcesses(Processes):
    """One of several processes, in torch.distributed's default group.

    Raises:
        ProcessLost: by every method that communicates, if another process has ended.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._flat = torch.zeros(0)
        self._views: list[Tensor] = []

    def pad_to_global(self, rows: Tensor) -> Tensor:
        everything = rows.new_zeros(len(rows) * self.world_size, *rows.shape[1:])
        everything[self.local_slice(len(everything))] = rows
        return everything

    def all_reduce(self, values: Tensor) -> Tensor:
        total = values.detach().cpu().clone()
        with _losses():
            dist.all_reduce(total)
        return total.to(values.device)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], measured: dict[str, float]) -> dict[str, float]:
        """See `Processes`. One float32 all-reduce of a reused buffer: the gradients, then the measurements.

        Every process must have gradients for the same parameters.
        """
        trained = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in trained if p.grad is not None]
        numbers = torch.tensor(list(measured.values()), dtype=torch.float32)
        self._prepare(gradients, len(measured))
        torch._foreach_copy_(self._views, [*gradients, numbers.to(self._flat.device)])
        with _losses():
            dist.all_reduce(self._flat)
        for parameter, summed in zip(trained, self._views[:-1], strict=True):
            parameter.grad = summed
        return dict(zip(measured, self._views[-1].tolist(), strict=True))

    def _prepare(self, gradients: Sequence[Tensor], count: int) -> None:
        """Views of the flat buffer: one per gradient, in its shape, and one of `count` numbers at the end."""
        shapes = [*(g.shape for g in gradients), torch.Size([count])]
        if [v.shape for v in self._views] == shapes and self._flat.device == gradients[0].device:
            return
        sizes = [shape.numel() for shape in shapes]
        self._flat = torch.zeros(sum(sizes), dtype=torch.float32, device=gradients[0].device)
        self._views = [part.view(shape) for part, shape in zip(self._flat.split(sizes), shapes, strict=True)]

    def gather_rows(self, rows: Tensor) -> Tensor:
        everything = torch.zeros(len(rows) * self.world_size, *rows.shape[1:], dtype=rows.dtype)
        if rows.numel() == 0:
            return everything
        parts = _bytes(everything).chunk(self.world_size) if self.is_rank_zero else None
        with _losses():
            dist.gather(_bytes(rows.detach().cpu()), None if parts is None else list(parts), dst=0)
        return everything

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        counts = torch.zeros(self.world_size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        counts = self.all_reduce(counts)
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
        if padded.numel() == 0:
            return padded
        padded[: len(rows)] = rows
        parts = [torch.zeros_like(padded) for _ in range(self.world_size)]
        with _losses():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def agree(self, number: float, flag: bool) -> tuple[float, bool]:
        first, flags = self.all_reduce(
            torch.tensor([number if self.is_rank_zero else 0.0, flag], dtype=torch.float64)
        ).tolist()
        return first, flags > 0

    def broadcast_object(self, value: Any) -> Any:
        text = json.dumps(value).encode() if self.is_rank_zero else b""
        length = torch.tensor(len(text))
        with _losses():
            dist.broadcast(length, src=0)
            sent = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.zeros(int(length)).byte()
            dist.broadcast(sent, src=0)
        return json.loads(sent.numpy().tobytes())

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.numel():
                sent = tensor.detach().cpu().contiguous().clone()
                with _losses():
                    dist.broadcast(_bytes(sent), src=0)
                tensor.copy_(sent)

    def check_equal(self, tensors: Iterable[Tensor], what: str) -> None:
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(_bytes(tensor.detach().cpu()).numpy().data)
        own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).view(1, -1)
        digests = self.all_gather_rows(own)
        differ = (digests != digests[:1]).any(1).nonzero().flatten().tolist()
        if differ:
            raise ProcessesDiverged(
                f"{what} of process {', '.join(map(str, differ))} are not those of process 0: the machines compute "
                "differently, or one is faulty"
            )

    def device(self, name: str) -> str:
        if name != "cuda":
            return name
        torch.cuda.set_device(_local_rank())
        return f"cuda:{_local_rank()}"

    @contextmanager
    def raising_together(self) -> Iterator[None]:
        error: NonFiniteNumbers | None = None
        try:
            yield
        except NonFiniteNumbers as raised:
            error = raised
        if self.agree(0.0, error is not None)[1]:
            raise error or NonFiniteNumbers("another process met numbers that are not finite")

    def barrier(self) -> None:
        self.agree(0.0, False)  # not a barrier, which would choose the backend and the GPU by itself

    def leave(self) -> None:
        _group.cache_clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def join() -> Processes:
    """The processes that `torchrun` started; `SINGLE_PROCESS` where there is one.

    Raises:
        ProcessLost: the others cannot be reached, or did not start in time (`JOIN_VARIABLE`).
        ValueError: an environment variable is no number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        return SINGLE_PROCESS
    return _group()


@cache
def _group() -> TorchProcesses:
    both = torch.cuda.is_available() and dist.is_nccl_available()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _meet(rank, size, _join_seconds())
    store.set_timeout(TIMEOUT)
    with _losses(), _default_signals():
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
        prefixed = dist.PrefixStore("default_pg", store)
        dist.init_process_group(backend, store=prefixed, rank=rank, world_size=size, timeout=TIMEOUT)
    return TorchProcesses()


def _join_seconds() -> float:
    text = os.environ.get(JOIN_VARIABLE, str(JOIN_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= TIMEOUT.total_seconds():
        most = TIMEOUT.total_seconds()
        raise ValueError(f"{JOIN_VARIABLE}={text!r}: expected seconds, more than 0 and at most {most:g}")
    return seconds


def _meet(rank: int, size: int, seconds: float) -> dist.TCPStore:
    """Wait until all processes have come to the store of process 0, or of torchrun.

    Raises:
        ProcessLost: not all have come in so many seconds; the message says which are missing.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500"))
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # set by torchrun, which then holds the store
    is_master, until = rank == 0 and not by_agent, time.monotonic() + seconds
    prefix = f"hrm_agent/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    missing, keys = [0], [f"{prefix}/{other}" for other in range(size)]
    given_up = f"{prefix}/given_up"  # set by a process that waits no longer, so that the others do not either
    store: dist.TCPStore | None = None
    try:
        # Waiting in Python, where signals are handled; torch's own waiting prints a stack at every attempt.
        while not (is_master or _listens(address, port)):
            _wait(until)
        with _default_signals():
            store = dist.TCPStore(
                address,
                port,
                size,
                is_master,
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,
                multi_tenant=True,
            )
        store.set(keys[rank], "here")
        missing = list(range(size))
        while missing := [other for other in missing if not store.check([keys[other]])]:
            _wait(0.0 if store.check([given_up]) else until)
    except (OSError, RuntimeError) as error:  # of torch.distributed too
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if not isinstance(error, TimeoutError):
            raise ProcessLost(
                f"process {rank} of {size} cannot meet the others at {address}:{port} ({reason})"
            ) from error
        if store is not None:
            store.set(given_up, "")
            time.sleep(1.0 if is_master else 0.0)  # the others read it; their store goes with this process
        which = f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        raise ProcessLost(
            f"waited {seconds:g} s for {which} of {size} at {address}:{port} (MASTER_ADDR, MASTER_PORT); start all of "
            f"them, or let {JOIN_VARIABLE} be more seconds"
        ) from None
    return store


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(until: float) -> None:
    """Raises: TimeoutError after that time."""
    if time.monotonic() > until:
        raise TimeoutError
    time.sleep(0.05)


@contextmanager
def _default_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the process in the body, which waits outside Python and would not see them.

    A signal that is ignored stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    handled = [(s, handler) for s, handler in found if handler not in (signal.SIG_IGN, None)]
    for s, _ in handled:
        signal.signal(s, signal.SIG_DFL)
    try:
        yield
    finally:
        for s, handler in handled:
            signal.signal(s, handler)


def local_world_size() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_local_device(name: str) -> None:
    """Raises: ValueError unless every process on this machine can have its own device."""
    count = local_world_size()
    if count == 1 or name == "cpu":
        return
    if name != "cuda":
        raise ValueError(
            f"device={name} for {count} processes: expected cuda, of which each takes the GPU of its number"
        )
    if count > torch.cuda.device_count():
        raise ValueError(
            f"{count} processes on a machine with {torch.cuda.device_count()} GPUs: start one for each GPU"
        )


def moments(values: Tensor, processes: Processes) -> tuple[int, Tensor, Tensor]:
    """Number of rows of all processes, their mean and sum of squared deviations, float64 `[c]`.

    Args:
        values: rows of this process, `[n, c]`.
    """
    values = values.double()
    sums = processes.all_reduce(torch.cat([values.sum(0), values.new_tensor([len(values)])]))
    mean = sums[:-1] / sums[-1]
    return int(sums[-1]), mean, processes.all_reduce((values - mean).square().sum(0))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as uint8 `[b]`, in the same memory: not every backend knows every dtype."""
    return tensor.contiguous().view(-1).view(torch.uint8)


@contextmanager
def _losses() -> Iterator[None]:
    """Convert the errors of torch.distributed for a lost process to ProcessLost."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ProcessLost(f"another process of this run has ended ({reason})") from error
