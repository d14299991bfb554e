"""The kernels compute the same on every instruction set: those of this processor natively, others in software."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import window_cases
from hrm_agent import recurrence
from hrm_agent.kernels.cpu import build, stack
from hrm_agent.kernels.cpu.build import NoKernels
from hrm_agent.parallel.threads import instruction_set
from hrm_agent.recurrence.cpu import shape_of, weights_of
from stack_cases import (
    Case,
    assert_bfloat16_gradients,
    assert_bfloat16_is_near,
    assert_near,
    assert_rows_are_independent,
    cases,
    results,
)

pytestmark = pytest.mark.thorough

HERE = Path(__file__).parent / "instruction_sets"
SHIM = HERE / "avx512_in_software.h"
EMULATORS = {"neon": ("aarch64-linux-gnu-g++", "qemu-aarch64")}
X86 = platform.machine() in ("x86_64", "AMD64")


def _in_software(bfloat16: bool) -> str:
    """Flags for AVX-512 without the processor; the shim's content is named too, so that a new one is compiled anew."""
    own = hashlib.sha256(SHIM.read_bytes()).hexdigest()[:8]
    without = "" if bfloat16 else " -DWITHOUT_BFLOAT16"
    return f"-O1 -mno-avx512f -Wno-psabi -include {SHIM} -DSHIM_{own}{without}"


# What the kernels then say they are compiled for -> flags. What is compiled for tests alone is compiled quickly.
VARIANTS = {
    "plain": "-O1 -march=x86-64 -mtune=generic" if X86 else "",
    "avx2": "-mno-avx512f -mavx2 -mfma" if X86 else "",
    "avx512": _in_software(bfloat16=False) if X86 else "",
    "avx512_bf16": _in_software(bfloat16=True) if X86 else "",
}


def _flags_of_processor() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}


def _why_not(variant: str) -> str:
    """Why kernels of this variant cannot be tested here; empty where they can."""
    if not recurrence.available("fused"):
        return "no C++ compiler"
    if not VARIANTS[variant]:
        return "not an x86 processor"
    if variant != "plain" and not {"avx2", "fma"} <= _flags_of_processor():
        return "this processor has no AVX2"
    return ""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name == "avx512" else ()) for name in VARIANTS])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels of one instruction set in place of the processor's.

    The float32 code of `avx512` is that of `avx512_bf16`, so it is compiled again in the slow tests only.
    """
    if reason := _why_not(request.param):
        pytest.skip(f"{request.param}: {reason}")
    own = request.param == instruction_set()  # then those kernels are compiled already
    how = "in software" if request.param.startswith("avx512") and not own else "natively"
    request.node.user_properties.append(("instruction set", f"{request.param} ({how})"))
    monkeypatch.setenv("HRM_AGENT_CXXFLAGS", "" if own else VARIANTS[request.param])
    for cached in (build._library, stack.functions):
        cached.cache_clear()
    yield request.param
    monkeypatch.undo()
    for cached in (build._library, stack.functions):
        cached.cache_clear()


def test_stacks_on_every_set(variant: str) -> None:
    assert stack.instructions() == variant

    @given(case=cases())
    @settings(max_examples=12, database=None)
    def near(case: Case) -> None:
        assert_near(case, results(case, "fused", torch.float32))

    near()


@pytest.mark.parametrize(("carry", "mixing"), [("full", "attention"), ("gate", "conv")])
def test_windows_on_every_set(variant: str, carry: str, mixing: str) -> None:
    torch.manual_seed(0)
    for core, batch in (("trm", 13), ("hrm", 3)):
        policy = window_cases.make(core, 32, mixing=mixing, carry=carry)
        window_cases.assert_near(policy, window_cases.window(policy, 3, batch, 5))


@pytest.mark.parametrize("size", [16, 21])
def test_the_gru_on_every_set(variant: str, size: int) -> None:
    torch.manual_seed(0)
    policy = window_cases.make_gru(memory=size + 3, size=size)
    window_cases.assert_near(policy, window_cases.window(policy, 3, 5, 0))


def test_rows_do_not_depend_on_their_batch(variant: str) -> None:
    for mixing, prefix in (("conv", 0), ("conv", 2), ("attention", 0), ("mlp", 0)):
        assert_rows_are_independent(mixing, (3, 5), prefix)


def test_bfloat16_where_the_set_has_it(variant: str) -> None:
    assert stack.has_bfloat16() == (variant == "avx512_bf16")
    if not stack.has_bfloat16():
        with pytest.raises(ValueError, match="kernel=fused_bf16: this processor does not multiply bfloat16"):
            recurrence.check_kernel("fused_bf16")
        return
    for mixing in ("conv", "attention", "mlp"):
        for grid in ((4, 4), (3, 7)):
            assert_bfloat16_is_near(mixing, grid)
        assert_bfloat16_gradients(mixing)


def test_the_processor_s_own_set(record_property: Any) -> None:
    """All other tests of the kernels run on it."""
    if not recurrence.available("fused"):
        pytest.skip("no C++ compiler")
    record_property("instruction set", f"{stack.instructions()} (this processor's)")
    assert stack.instructions() == instruction_set() or os.environ.get("HRM_AGENT_CXXFLAGS")


def test_an_unknown_flag_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not recurrence.available("fused"):
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("HRM_AGENT_CXXFLAGS", "-mno-such-thing")
    monkeypatch.setenv("HRM_AGENT_CACHE", str(tmp_path))
    build._library.cache_clear()
    with pytest.raises(NoKernels, match=r"does not compile them: .*-mno-such-thing"):
        build.library()
    monkeypatch.undo()
    build._library.cache_clear()


def _arrays(*tensors: Tensor) -> bytes:
    parts = []
    for tensor in tensors:
        parts.append(np.array(tensor.numel(), np.int64).tobytes())
        parts.append(tensor.detach().contiguous().numpy().astype(np.float32).tobytes())
    return b"".join(parts)


class Emulated:
    """Stack kernels of another processor, one process a call."""

    def __init__(self, name: str) -> None:
        compiler, self.emulator = EMULATORS[name]
        key = hashlib.sha256(b"".join(f.read_bytes() for f in [*sorted(build.SOURCES.iterdir()), HERE / "driver.cpp"]))
        self.driver = build.cache_folder() / f"driver-{name}-{key.hexdigest()[:16]}"
        if not self.driver.exists():
            self.driver.parent.mkdir(parents=True, exist_ok=True)
            made = self.driver.with_suffix(f".{os.getpid()}")
            flags = [f for f in build.FLAGS if f not in ("-shared", "-fPIC")]
            source = [f"-I{build.SOURCES}", str(HERE / "driver.cpp"), "-o", str(made)]
            subprocess.run([compiler, "-static", *flags, *source], check=True)
            os.replace(made, self.driver)

    def call(self, function: str, case: Case, *inputs: Tensor) -> bytes:
        """What the driver answers to a call about the stack of a case."""
        made, angles, x = case
        s = shape_of(made)
        numbers = [
            stack.MIXINGS.index(s.mixing), s.layers, len(x), s.length, s.size, s.inner, *s.grid, s.heads,
            s.position_inner, 0, s.causal,
        ]  # fmt: skip
        cos, sin = angles or (torch.empty(0), torch.empty(0))
        weights = weights_of(made)
        told = np.array(numbers, np.int64).tobytes() + np.array(s.epsilon, np.float32).tobytes()
        told += _arrays(cos, sin) + np.array(len(weights), np.int64).tobytes() + _arrays(*weights, *inputs)
        return subprocess.run([self.emulator, str(self.driver), function], input=told, stdout=-1, check=True).stdout

    def arrays(self, function: str, case: Case, *inputs: Tensor) -> list[Tensor]:
        answer, found = self.call(function, case, *inputs), []
        while answer:
            count = int(np.frombuffer(answer[:8], np.int64)[0])
            found.append(torch.from_numpy(np.frombuffer(answer[8 : 8 + 4 * count], np.float32).copy()))
            answer = answer[8 + 4 * count :]
        return found

    def results(self, case: Case) -> list[Tensor]:
        """As `stack_cases.results`: output, and gradients of input and weights."""
        made, _, x = case
        y, kept = self.arrays("forward", case, x)
        down = torch.arange(x.numel(), dtype=torch.float64).view_as(x).sin()
        to_x, *to_weights = self.arrays("backward", case, x, y, kept, down)
        weights = weights_of(made)
        shaped = [
            g.view_as(empty)
            for g, empty in zip(to_weights, stack.empty_gradients(shape_of(made), weights), strict=True)
        ]
        laid_out = stack.as_weights(shape_of(made), weights, shaped)
        gradient_of = {id(weight): gradient for weight, gradient in zip(weights, laid_out, strict=True)}
        return [y.view_as(x), to_x.view_as(x), *(gradient_of[id(weight)] for weight in made.parameters())]


@cache
def _emulated(name: str) -> Emulated:
    return Emulated(name)


@pytest.mark.parametrize("name", EMULATORS)
@given(case=cases(small=True))
@settings(max_examples=8, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_processor_under_an_emulator(record_property: Any, name: str, case: Case) -> None:
    if missing := [tool for tool in EMULATORS[name] if shutil.which(tool) is None]:
        pytest.skip(f"{name}: {' and '.join(missing)} not installed")
    record_property("instruction set", f"{name} (emulated, stacks)")
    emulated = _emulated(name)
    assert emulated.call("instructions", case, torch.empty(0)).split() == [name.encode()]
    ours = emulated.results(case)
    assert_near(case, ours)
