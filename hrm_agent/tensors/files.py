"""Tensors and metadata in one file, written whole or not at all, and never unpickled.

A file is safetensors; its metadata is JSON and holds a SHA-256 over every tensor and the metadata itself, so that a
truncated or altered file is refused. It is written under a temporary name, flushed to the disk and renamed: a
process killed at any moment, or a full disk, leaves the earlier files as they were.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hrm_agent.files.reading import CheckpointError
from hrm_agent.files.writing import write_atomically

FORMAT_VERSION = 1
SUFFIX = ".safetensors"


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and JSON-able `metadata` to `path`, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, sort_keys=True)
    header = {"format_version": str(FORMAT_VERSION), "metadata": text, "sha256": _digest(tensors, text)}
    write_atomically(path, _sort_header(save(tensors, metadata=header)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back what `save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
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
    if _digest(tensors, header["metadata"]) != header["sha256"]:
        raise CheckpointError(f"{path}: checksum does not match; the file was altered, use an earlier checkpoint")
    return tensors, json.loads(header["metadata"])


def _sort_header(data: bytes) -> bytes:
    """The header of a safetensors file in the order of its names, so that equal contents give equal files.

    The library's own order of the metadata differs from call to call.
    """
    begin, end = 8, 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[begin:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
