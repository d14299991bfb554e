"""The memory that a process may still take: of the machine, of its control groups, of itself."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from hrm_agent.parallel.memory import at_most, available_memory

CPU = torch.device("cpu")
GB = 10**9
ONE_OF_EACH = "9:name=systemd:/\n4:memory:/job/step\n0::/job/step\n"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def machine(folder: Path, free: int, cgroups: str = "") -> Path:
    write(folder / "proc/meminfo", f"MemTotal: 64000000 kB\nMemAvailable:   {free // 1024} kB\n")
    write(folder / "proc/self/cgroup", cgroups)
    return folder


def test_what_is_free_on_the_machine_counts_not_what_it_has(tmp_path: Path) -> None:
    assert available_memory(CPU, machine(tmp_path, 8 * 2**30)) == 8 * 2**30


@pytest.mark.parametrize("at", ["", "job", "job/step"])
def test_the_narrowest_control_group_counts(at: str, tmp_path: Path) -> None:
    group = machine(tmp_path, 30 * GB, ONE_OF_EACH) / "sys/fs/cgroup" / at
    write(group / "memory.max", f"{4 * GB}\n")
    write(group / "memory.current", f"{3 * GB}\n")
    write(group / "memory.stat", f"anon {GB}\ninactive_file {GB}\nactive_file {GB // 2}\n")
    assert available_memory(CPU, tmp_path) == 2.5 * GB  # files that were read can be given back


def test_groups_of_the_first_version_are_known_too(tmp_path: Path) -> None:
    group = machine(tmp_path, 30 * GB, ONE_OF_EACH) / "sys/fs/cgroup/memory/job"
    write(group / "memory.limit_in_bytes", f"{4 * GB}\n")
    write(group / "memory.usage_in_bytes", f"{GB}\n")
    assert available_memory(CPU, tmp_path) == 3 * GB


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n", "", "many\n"])
def test_a_group_without_a_limit_sets_none(limit: str, tmp_path: Path) -> None:
    group = machine(tmp_path, 30 * 2**30, ONE_OF_EACH) / "sys/fs/cgroup"
    write(group / "memory.max", limit)
    write(group / "memory.current", "5\n")
    assert available_memory(CPU, tmp_path) == 30 * 2**30


def test_a_limit_of_the_process_itself_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, 2**20))  # less than it has taken already
    assert available_memory(CPU, machine(tmp_path, 30 * GB)) == 0


def test_weights_are_refused_before_they_are_allocated() -> None:
    with at_most(10**6, "too large"):
        nn.Linear(300, 300)
    with pytest.raises(ValueError, match="too large"), at_most(10**6, "too large"):
        nn.Linear(10**7, 10**7)
    with at_most(None, "too large"):
        nn.Linear(3, 3)
