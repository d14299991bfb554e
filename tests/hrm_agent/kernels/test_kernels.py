"""The C++ kernels compute what eager torch does, outputs and gradients, for any shape; what they cannot, torch does."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from commands import TINY_RUN, run_command
from hrm_agent import recurrence
from hrm_agent.benchmarks import parity
from hrm_agent.cores import build_core
from hrm_agent.kernels.cpu import build
from hrm_agent.kernels.cpu.build import NoKernels
from hrm_agent.kernels.cpu.stack import has_bfloat16
from hrm_agent.tensors.files import load_tensors
from published_files import FOLDER, PUBLISHED, needs_published
from refusals import refusal
from stack_cases import (
    Case,
    assert_bfloat16_gradients,
    assert_bfloat16_is_near,
    assert_near,
    assert_rows_are_independent,
    cases,
    make,
    needs_bfloat16,
    needs_kernels,
    results,
)


@needs_kernels
@given(cases())
@settings(max_examples=60)
def test_outputs_and_gradients_are_as_near_the_exact_ones_as_torch_s(case: Case) -> None:
    assert_near(case, results(case, "fused", torch.float32))


@needs_kernels
@pytest.mark.parametrize(
    ("mixing", "grid", "prefix"),
    [
        ("conv", (3, 5), 0),
        ("conv", (3, 5), 2),
        ("conv", (0, 0), 3),
        ("attention", (3, 5), 0),
        ("causal", (3, 5), 0),
        ("mlp", (3, 5), 0),
    ],
)
def test_a_row_does_not_depend_on_its_batch_or_on_the_gradient(mixing: str, grid: tuple[int, int], prefix: int) -> None:
    """Bit for bit: chunks, threads and what is kept for the backward change nothing."""
    assert_rows_are_independent(mixing, grid, prefix)


@needs_kernels
@pytest.mark.parametrize("mixing", ["conv", "attention", "mlp"])
def test_a_stack_may_run_many_times_before_its_gradient_is_taken(mixing: str) -> None:
    """As in a window of steps: what one call kept is not overwritten by the next."""
    torch.manual_seed(1)
    stack, angles, x = make(mixing, 9, (4, 4), 2, 16, 32, 2)
    grads = []
    for path in ("plain", "fused"):
        recurrence.use(stack, path)
        y = x.clone().requires_grad_()
        start = y
        for _ in range(3):
            y = stack(y + x, angles)
        grads.append(torch.autograd.grad(y, [start, *stack.parameters()], x.cos()))
    for plain, fused in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
        assert fused.is_contiguous()  # fused optimizers walk a gradient as they walk its weight


@needs_kernels
def test_inputs_may_be_views_and_batches_empty() -> None:
    stack, angles, _ = make("conv", 1, (2, 3), 1, 16, 16, 1)
    recurrence.use(stack, "fused")
    wide = torch.randn(4, 6, 32)
    assert torch.equal(stack(wide[..., :16], angles), stack(wide[..., :16].contiguous(), angles))
    shared = torch.randn(1, 1, 16).expand(4, 6, 16)  # as an initial state is
    assert torch.equal(stack(shared, angles), stack(shared.contiguous(), angles))
    assert stack(torch.randn(0, 6, 16), angles).shape == (0, 6, 16)


@needs_bfloat16
@pytest.mark.parametrize("mixing", ["conv", "attention", "causal", "mlp"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_bfloat16_is_at_least_as_near_as_torch_s(mixing: str, grid: tuple[int, int]) -> None:
    assert_bfloat16_is_near(mixing, grid)


@needs_bfloat16
@pytest.mark.parametrize("mixing", ["conv", "attention", "causal", "mlp"])
def test_bfloat16_gradients_point_where_the_exact_ones_do(mixing: str) -> None:
    assert_bfloat16_gradients(mixing)


@needs_kernels
@pytest.mark.parametrize(
    ("core", "options"),
    [
        ("trm", {"mixing": "conv", "hidden_size": 24, "length": 12, "grid": (3, 4)}),  # 24 is no multiple of 16
        ("trm", {"mixing": "conv", "causal": True, "hidden_size": 32, "length": 12}),
        ("trm", {"mixing": "units", "hidden_size": 32, "length": 16, "grid": (4, 4)}),
        ("trm", {"mixing": "attention_local", "hidden_size": 32, "length": 12, "grid": (3, 4)}),
        ("trm", {"mixing": "attention", "hidden_size": 32, "num_heads": 4, "length": 12}),  # heads of 8
        ("convlstm", {"hidden_size": 32, "length": 12, "grid": (3, 4)}),
    ],
)
def test_what_the_kernels_do_not_know_is_computed_plainly(core: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = build_core(core, **options)
    x = torch.randn(3, options["length"], options["hidden_size"])
    before, _ = made(x, made.initial_state(3))
    assert recurrence.use(made, "fused") == "plain"
    assert recurrence.candidates(made, allow_bf16=True) == ["plain"]
    assert torch.equal(made(x, made.initial_state(3))[0], before)


@needs_kernels
def test_other_types_and_tracing_go_the_plain_way() -> None:
    stack, angles, x = make("conv", 2, (2, 3), 1, 16, 16, 1)
    recurrence.use(stack, "fused")
    double = stack.double()(x.double(), angles)
    torch.testing.assert_close(double.float(), stack.float()(x, angles), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(stack, (x,)).module()
    torch.testing.assert_close(exported(x), stack(x), rtol=1e-4, atol=1e-5)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from hrm_agent.kernels.cpu import stack

    caches = (build._library, stack.functions)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("HRM_AGENT_CACHE", str(tmp_path / "cache"))
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_without_a_compiler_auto_is_plain_and_the_rest_is_refused(
    no_compiler: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    stack, _, _ = make("conv", 2, (2, 3), 1, 16, 16, 1)
    assert recurrence.candidates(stack) == ["plain"]
    assert caplog.messages == ["kernel=plain, which is slower: no C++ compiler found (no-such-compiler)"]
    with pytest.raises(NoKernels, match=r"no C\+\+ compiler found \(no-such-compiler\)"):
        build.library()
    told = refusal(monkeypatch, capsys, "train", [*TINY_RUN, "kernel=fused"], tmp_path)
    assert "kernel=fused: no C++ compiler found (no-such-compiler); use kernel=auto or kernel=plain" in told


def test_a_compiler_that_fails_is_told_in_one_line(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nprintf 'line one\\nline two\\n' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(NoKernels, match="does not compile them: line one line two") as caught:
        build.library()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_what_fails_in_the_background_is_told_to_whoever_asks(no_compiler: None) -> None:
    build.begin()
    with pytest.raises(NoKernels, match=r"no C\+\+ compiler found \(no-such-compiler\)"):
        build.library()
    assert build.is_ready()
    assert build.compiling_for() is None


@pytest.fixture
def small_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In place of the kernels: what is compiled does not matter, it takes seconds."""
    monkeypatch.setattr(build, "SOURCES", tmp_path / "source")
    build.SOURCES.mkdir()
    for name in ("one", "two"):
        (build.SOURCES / f"{name}.cpp").write_text(f'extern "C" int {name}() {{ return 0; }}\n')


COUNTING = """#!/bin/sh
[ "$1" = --version ] && exit 0
echo run >> {log}
exec {compiler} "$@"
"""


@needs_kernels
@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("cache", ["cache", "file/cache"])
def test_kernels_are_compiled_once_in_the_background_even_without_a_cache(
    cache: str, no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # nothing can lie below it, whoever asks
    compiler = tmp_path / "c++"
    compiler.write_text(COUNTING.format(log=tmp_path / "log", compiler=next(filter(shutil.which, build.COMPILERS))))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("HRM_AGENT_CACHE", str(tmp_path / cache))
    assert not build.is_ready()
    build.begin()
    assert build.library() is build.library()
    assert build.is_ready()
    assert (tmp_path / "log").read_text().splitlines() == ["run"] * 3  # one for each source, one that links them
    told = [message.partition(", their")[0] for message in caplog.messages]
    assert told == ([] if cache == "cache" else ["the C++ kernels are compiled anew in every process"])


@needs_kernels
@pytest.mark.usefixtures("small_sources")
def test_a_damaged_library_is_made_anew_and_one_that_others_can_write_is_not_loaded(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = next(filter(shutil.which, build.COMPILERS))
    monkeypatch.setenv("CXX", f"env {compiler}")  # two words, as "ccache g++"
    cache = tmp_path / "cache"

    def load() -> str:
        """Where a new process has its library from, in an empty cache of functions."""
        build._library.cache_clear()
        return str(Path(build.library()._name).parent)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HRM_AGENT_CACHE", "cache")  # relative
    assert load() == str(cache)
    (library,) = cache.glob("*.so")
    assert cache.stat().st_mode & 0o777 == 0o700
    whole, seal = library.read_bytes(), library.with_suffix(".json")
    assert load() == str(cache)
    assert caplog.messages == []
    for damage in (whole[: len(whole) // 2], b"", b"x" * len(whole)):
        replacement = cache / "new"  # not written into: this process has it mapped
        replacement.write_bytes(damage)
        replacement.chmod(0o600)
        replacement.replace(library)
        assert load() == str(cache)
        assert library.read_bytes() == whole
        assert "is damaged" in caplog.messages.pop()
    seal.write_text("[]")
    assert load() == str(cache)
    assert "is damaged" in caplog.messages.pop()
    library.chmod(0o666)
    assert load() != str(cache)
    assert "can be written by other users" in caplog.messages.pop()
    library.chmod(0o600)
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    assert load() != str(cache)
    assert "or is a link" in caplog.messages.pop()


@needs_kernels
@pytest.mark.usefixtures("small_sources")
def test_a_full_disk_under_the_cache_costs_the_cache_alone(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("CXX", next(filter(shutil.which, build.COMPILERS)))
    monkeypatch.setattr(os, "fsync", full)
    assert build.library().one() == 0
    (message,) = caplog.messages
    assert "their cache cannot be used: [Errno 28] No space left on device (HRM_AGENT_CACHE" in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unknown_kernel_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = refusal(monkeypatch, capsys, "train", [*TINY_RUN, "kernel=fast"], tmp_path)
    assert "kernel=fast: expected one of auto, plain, fused, fused_bf16, compiled" in told


@needs_kernels
def test_training_learns_the_same_on_both_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = []
    for kernel in ("plain", "fused"):
        folder = tmp_path / kernel
        sizes = ("core.hidden_size=32", "core.inner_size=32", "total_steps=96")
        options = (*sizes, f"kernel={kernel}", f"hydra.run.dir={folder}")
        run_command(monkeypatch, "train", *TINY_RUN, *options)
        weights.append(load_tensors(folder / "agents" / "last" / "agent.safetensors")[0])
    assert weights[0].keys() == weights[1].keys()
    for name, plain in weights[0].items():
        torch.testing.assert_close(weights[1][name], plain, rtol=1e-3, atol=1e-4, msg=name)
    assert any(not torch.equal(weights[1][name], plain) for name, plain in weights[0].items())  # two paths, indeed


@needs_published
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("fused", marks=needs_kernels),
        pytest.param("fused_bf16", marks=needs_bfloat16),
        pytest.param("compiled", marks=pytest.mark.slow),  # a minute of compiling
    ],
)
def test_parity_on_fast_paths(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(f) for f in PUBLISHED]
    assert parity.main(["--path", path, *files]) == 0, capsys.readouterr().out


@needs_kernels
@needs_published
def test_parity_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hrm_agent.recurrence import cpu

    right = cpu.run_stack
    monkeypatch.setattr(cpu, "run_stack", lambda *given: right(*given) * (1 + 1e-4))
    assert parity.main(["--path", "fused", str(FOLDER / "trm_attention.safetensors")]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")
def test_bfloat16_is_known() -> None:
    assert has_bfloat16() == recurrence.available("fused_bf16")
