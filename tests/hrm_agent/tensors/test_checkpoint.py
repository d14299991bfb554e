"""Checkpoints: what is read is what was written, or an error; nothing that was safe is ever lost."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from hrm_agent.algos.optim import load_optimizer_tensors, optimizer_tensors
from hrm_agent.files.reading import CheckpointError
from hrm_agent.files.writing import write_atomically
from hrm_agent.tensors.files import load_tensors, save_tensors
from hrm_agent.tensors.trees import flatten, unflatten
from hrm_agent.training.checkpoints import CheckpointFolder

TENSORS = {
    "weights": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
    "mask": torch.tensor([True, False]),
    "grid": torch.arange(12, dtype=torch.uint8).view(3, 4),
    "counter": torch.tensor(2**40),
    "nothing": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "not_finite": torch.tensor([float("nan"), float("inf")]),
}
METADATA: dict[str, Any] = {"frames": 12, "episodes": [[0.5, 3, True]], "name": "möwe"}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    transposed = TENSORS["weights"].T
    save_tensors(path, {**TENSORS, "transposed": transposed}, METADATA)
    tensors, metadata = load_tensors(path)
    assert metadata == METADATA
    assert tensors.keys() == {*TENSORS, "transposed"}
    for name, tensor in {**TENSORS, "transposed": transposed}.items():
        assert tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", TENSORS, METADATA)
    for _ in range(5):  # the library's own order of the header differs from call to call
        save_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(METADATA.items())))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150)
def test_a_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: ") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


@given(kept=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, kept: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_tensors(path)


def rewrite_header(path: Path, change: dict[str, str]) -> None:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= change
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def test_altered_metadata_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    rewrite_header(path, {})
    assert load_tensors(path)[1] == METADATA
    rewrite_header(path, {"metadata": json.dumps({**METADATA, "frames": 13}, sort_keys=True)})
    with pytest.raises(CheckpointError, match="checksum does not match"):
        load_tensors(path)


def test_other_versions_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    rewrite_header(path, {"format_version": "99"})
    with pytest.raises(CheckpointError, match="format version 99, expected 1"):
        load_tensors(path)
    path.write_bytes(save({"w": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="not written by hrm_agent"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_tensors(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="no such file"):
        load_tensors(tmp_path / "folder")


def test_a_write_that_was_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process never comes to its `finally`: the temporary file stays, whole or in part."""
    folder = CheckpointFolder(tmp_path)
    first = folder.save(100, TENSORS, {"frames": 100})
    (tmp_path / ".000000000200.safetensors.77.tmp").write_bytes(first.read_bytes()[:50])
    assert folder.paths() == [first]
    assert load_tensors(first)[1] == {"frames": 100}
    second = folder.save(200, TENSORS, {"frames": 200})
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_temporary_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    first = folder.save(100, TENSORS, {"frames": 100})
    before = first.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(os, "fdopen", FullDisk)
        else:
            patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            folder.save(200, TENSORS, {"frames": 200})
        with pytest.raises(OSError, match="No space left"):
            folder.save(100, TENSORS, {"frames": 0})
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    assert first.read_bytes() == before
    assert load_tensors(folder.save(200, TENSORS, {"frames": 200}))[1] == {"frames": 200}


class FullDisk:
    """A file that takes ten bytes."""

    def __init__(self, descriptor: int, mode: str) -> None:
        self.file = open(descriptor, mode)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        self.file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def test_a_file_is_flushed_to_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_atomically(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]
    assert (tmp_path / "a").read_bytes() == b"x"


def test_the_last_few_are_kept_and_the_newest_is_the_latest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    assert folder.latest() is None
    for frames in (9, 10, 99, 100_000_000_000):
        saved = folder.save(frames, {"a": torch.tensor(frames)}, {})
        assert folder.latest() == saved
    assert [int(p.stem) for p in folder.paths()] == [99, 100_000_000_000]


def test_names_are_put_under_a_prefix_and_taken_out_again() -> None:
    tensors = {"a": torch.zeros(1), "a/b": torch.ones(2)}
    both = {**flatten("x", tensors), **flatten("xy", {"c": torch.zeros(3)})}
    assert unflatten("x", both).keys() == tensors.keys()
    assert unflatten("xy", both).keys() == {"c"}


def test_an_optimizer_goes_on_from_its_tensors_but_keeps_its_own_settings() -> None:
    def train(parameter: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            parameter.grad = torch.full_like(parameter, 1.0 + step)
            optimizer.step()

    torch.manual_seed(0)
    one = nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([one], lr=0.1, fused=True)
    train(one, optimizer, 3)
    other = nn.Parameter(one.detach().clone())
    resumed = torch.optim.AdamW([other], lr=0.1, fused=True)
    saved = {name: t.clone() for name, t in optimizer_tensors(optimizer).items()}
    load_optimizer_tensors(resumed, saved)
    train(one, optimizer, 2)
    train(other, resumed, 2)
    assert torch.equal(one, other)
    slower = torch.optim.AdamW([other], lr=0.01, fused=True)
    load_optimizer_tensors(slower, saved)
    assert slower.param_groups[0]["lr"] == 0.01
