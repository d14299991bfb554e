"""Tensors and metadata in one file, written whole or not at all, and never unpickled.

A file is safetensors; its metadata is JSON and holds a SHA-256 over every tensor and the metadata itself, so that a
truncated or altered file is refused. It is written under a temporary name, flushed to the disk and renamed: a
process killed at any moment, or a full disk, leaves the earlier files as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hrm_agent.files.reading import CheckpointError, parse_json
from hrm_agent.files.writing import write_atomically

FORMAT_VERSION = 1
SUFFIX = ".safetensors"


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and JSON-able `metadata` to `path`, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, sort_keys=True)
    header = {"format_version": str(FORMAT_VERSION), "metadata": text, "sha256": digest(tensors, text)}
    write_atomically(path, _sort_header(save(tensors, metadata=header)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back what `save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, altered, of another version, or larger than this machine's
            memory.
    """
    return _load(path, None)


def load_weights(path: Path, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same of the weights of a network, whose names and shapes are compared before any of them is read.

    Args:
        expected: its `state_dict`.

    Raises:
        CheckpointError: see `load_tensors`; or the weights are not those of the network, or see `check_weights`.
    """
    tensors, metadata = _load(path, expected)
    check_weights(path, tensors, expected)
    return tensors, metadata


def allowance(path: Path) -> int:
    """Bytes that a network may allocate while it is built if its weights are to be in this file.

    They leave room for weights that the file holds in half precision, and for tables that it does not hold.

    Raises:
        CheckpointError: there is no such file.
    """
    return 4 * _size(path) + 2**28


def _size(path: Path) -> int:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return path.stat().st_size


def check_weights(source: object, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that weights are those of a network, and finite numbers of the same kind.

    Args:
        source: where they come from, for messages.
        expected: as of `load_weights`.

    Raises:
        CheckpointError: other names or shapes, integers, booleans or complex numbers in place of real ones, NaN or
            infinity.
    """
    _check_shapes(source, {name: list(tensor.shape) for name, tensor in weights.items()}, expected)
    for name, tensor in weights.items():
        own = expected[name].dtype
        if tensor.dtype != own and not (tensor.dtype.is_floating_point and own.is_floating_point):
            raise CheckpointError(f"{source}: weights do not fit: {name} is {tensor.dtype}, expected {own}")
        if not torch.isfinite(tensor.to(own)).all():  # float64 may hold more than the network can
            raise CheckpointError(f"{source}: {name} has entries that are NaN or infinite; the file was altered")


def _load(path: Path, expected: Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    size, memory = _size(path), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise CheckpointError(f"{path}: {size:,} bytes, more than this machine has memory ({memory:,})")
    try:
        with safe_open(path, framework="pt") as file:
            if expected is not None:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
                _check_shapes(path, shapes, expected)
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); it is truncated or altered") from None
    if "sha256" not in header or "metadata" not in header:
        raise CheckpointError(f"{path}: not written by hrm_agent (no checksum in its header)")
    version = header.get("format_version")
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format version {version}, expected {FORMAT_VERSION}; use the version that wrote it"
        )
    if digest(tensors, header["metadata"]) != header["sha256"]:
        raise CheckpointError(f"{path}: checksum does not match; the file was altered, use an earlier checkpoint")
    return tensors, parse_json(header["metadata"], dict[str, Any], f"{path}: its metadata")


def _check_shapes(source: object, shapes: Mapping[str, list[int]], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(shapes.keys() ^ expected.keys()):
        reason = "missing" if name in expected else "not one of its weights"
        raise CheckpointError(f"{source}: weights do not fit the network: {name!r} is {reason}")
    for name, own in expected.items():
        if shapes[name] != list(own.shape):
            raise CheckpointError(
                f"{source}: weights do not fit the network: {name} is {shapes[name]}, expected {list(own.shape)}"
            )


def _sort_header(data: bytes) -> bytes:
    """The header of a safetensors file in the order of its names, so that equal contents give equal files.

    The library's own order of the metadata differs from call to call.
    """
    begin, end = 8, 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[begin:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256, in hexadecimal, of a text and of the names, dtypes, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
