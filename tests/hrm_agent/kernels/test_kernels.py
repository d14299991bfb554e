"""The C++ kernels compute what eager torch does, outputs and gradients, for any shape; what they cannot, torch does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY_RUN, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import refusal
from torch import Tensor

from hrm_agent import kernels
from hrm_agent.benchmarks import parity
from hrm_agent.cores import build_core
from hrm_agent.cores.blocks import BlockStack, RotaryPositions
from hrm_agent.kernels.cpu import build
from hrm_agent.kernels.cpu.build import NoKernels
from hrm_agent.kernels.cpu.stack import has_bfloat16
from hrm_agent.tensors.files import load_tensors

PARITY = Path(__file__).parents[3] / "shared" / "parity"
needs_kernels = pytest.mark.skipif(not kernels.available("fused"), reason="no C++ compiler")
needs_bfloat16 = pytest.mark.skipif(not kernels.available("fused_bf16"), reason="no AVX512_BF16")

Case = tuple[BlockStack, Any, Tensor]


def make(
    mixing: str, batch: int, grid: tuple[int, int], heads: int, head: int, inner: int, layers: int, prefix: int = 0
) -> Case:
    length, size = prefix + grid[0] * grid[1], heads * head
    stack = BlockStack(
        layers,
        hidden_size=size,
        length=length,
        grid=grid if grid[0] else None,
        num_heads=heads,
        mixing=mixing,
        expansion=4.0,
        inner_size=inner,
    )
    with torch.no_grad():
        for weight in stack.parameters():
            if weight.shape == (2, size):  # of means, which are ones at first
                weight.normal_()
    angles = RotaryPositions("rope", mixing, size, heads, length, None)()
    return stack, angles, torch.randn(batch, length, size)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    grid = draw(st.one_of(st.tuples(st.integers(1, 9), st.integers(2, 17)), st.just((0, 0))))
    return make(
        draw(st.sampled_from(["conv", "attention", "mlp"])),
        batch=draw(st.integers(1, 20)),
        grid=grid,
        prefix=draw(st.integers(0 if grid[0] else 3, 5)),  # a norm over few positions is mostly cancellation
        heads=draw(st.integers(1, 3)),
        head=draw(st.sampled_from([16, 32, 48, 80])),
        inner=draw(st.sampled_from([16, 48, 80, 144])),
        layers=draw(st.integers(1, 3)),
    )


def results(case: Case, path: str, dtype: torch.dtype) -> list[Tensor]:
    """Output, and gradients of input and weights."""
    stack, angles, x = case
    kernels.use(stack.to(dtype), path)
    turns = None if angles is None else tuple(a.to(dtype) for a in angles)
    entry = x.to(dtype).requires_grad_()
    y = stack(entry, turns)
    down = torch.arange(x.numel(), dtype=torch.float64).view_as(x).sin().to(dtype)
    return [y.detach(), *torch.autograd.grad(y, [entry, *stack.parameters()], down)]


@needs_kernels
@given(cases())
@settings(max_examples=60)
def test_outputs_and_gradients_are_as_near_the_exact_ones_as_torch_s(case: Case) -> None:
    assert_near(case, results(case, "fused", torch.float32))


def assert_near(case: Case, fused: list[Tensor]) -> None:
    """Results are as near the exact ones as those of eager torch in float32."""
    exact, plain = results(case, "plain", torch.float64), results(case, "plain", torch.float32)
    largest = max(gradient.abs().max() for gradient in exact)
    for right, theirs, ours in zip(exact, plain, fused, strict=True):
        allowed = 4 * (theirs - right).abs().max() + 1e-5 * right.abs().max() + 1e-6 * largest
        assert (ours - right).abs().max() <= allowed


@needs_kernels
@pytest.mark.parametrize(
    ("mixing", "grid", "prefix"),
    [("conv", (3, 5), 0), ("conv", (3, 5), 2), ("conv", (0, 0), 3), ("attention", (3, 5), 0), ("mlp", (3, 5), 0)],
)
def test_a_row_does_not_depend_on_its_batch_or_on_the_gradient(mixing: str, grid: tuple[int, int], prefix: int) -> None:
    """Bit for bit: chunks, threads and what is kept for the backward change nothing."""
    torch.manual_seed(0)
    stack, angles, x = make(mixing, 37, grid, 2, 16, 48, 2, prefix)
    kernels.use(stack, "fused")
    with torch.no_grad():
        whole = stack(x, angles)
        alone = torch.cat([stack(row, angles) for row in x.split(1)])
        with ThreadPoolExecutor(4) as pool:

            def part(rows: Tensor) -> Tensor:
                with torch.no_grad():
                    return stack(rows, angles)

            threaded = torch.cat(list(pool.map(part, x.split(5))))
    assert torch.equal(whole, alone)
    assert torch.equal(whole, threaded)
    assert torch.equal(whole, stack(x, angles).detach())


@needs_kernels
@pytest.mark.parametrize("mixing", ["conv", "attention", "mlp"])
def test_a_stack_may_run_many_times_before_its_gradient_is_taken(mixing: str) -> None:
    """As in a window of steps: what one call kept is not overwritten by the next."""
    torch.manual_seed(1)
    stack, angles, x = make(mixing, 9, (4, 4), 2, 16, 32, 2)
    grads = []
    for path in ("plain", "fused"):
        kernels.use(stack, path)
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
    kernels.use(stack, "fused")
    wide = torch.randn(4, 6, 32)
    assert torch.equal(stack(wide[..., :16], angles), stack(wide[..., :16].contiguous(), angles))
    shared = torch.randn(1, 1, 16).expand(4, 6, 16)  # as an initial state is
    assert torch.equal(stack(shared, angles), stack(shared.contiguous(), angles))
    assert stack(torch.randn(0, 6, 16), angles).shape == (0, 6, 16)


@needs_bfloat16
@pytest.mark.parametrize("mixing", ["conv", "attention", "mlp"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_bfloat16_is_at_least_as_near_as_torch_s(mixing: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(2)
    stack, angles, x = make(mixing, 40, grid, 2, 32, 128, 3)
    with torch.no_grad():
        exact = stack(x, angles)
        with torch.autocast("cpu", torch.bfloat16):
            torchs = (stack(x, angles) - exact).square().mean()
        kernels.use(stack, "fused_bf16")
        ours = (stack(x, angles) - exact).square().mean()
        kernels.use(stack, "fused")
        with torch.autocast("cpu", torch.bfloat16):
            automatic = (stack(x, angles) - exact).square().mean()
    assert 0 < ours <= torchs
    assert torch.equal(ours, automatic)


@needs_bfloat16
@pytest.mark.parametrize("mixing", ["conv", "attention", "mlp"])
def test_bfloat16_gradients_point_where_the_exact_ones_do(mixing: str) -> None:
    torch.manual_seed(3)
    stack, angles, x = make(mixing, 12, (4, 5), 2, 32, 64, 2)
    grads = []
    for path in ("plain", "fused_bf16"):
        kernels.use(stack, path)
        entry = x.clone().requires_grad_()
        y = stack(entry, angles)
        down = torch.arange(y.numel()).view_as(y).sin()
        grads.append(torch.autograd.grad(y, [entry, *stack.parameters()], down))
    for exact, ours in zip(*grads, strict=True):
        assert torch.cosine_similarity(exact.flatten(), ours.flatten(), dim=0) > 0.999


@needs_kernels
@pytest.mark.parametrize(
    ("core", "options"),
    [
        ("trm", {"mixing": "conv", "hidden_size": 24, "length": 12, "grid": (3, 4)}),  # 24 is no multiple of 16
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
    assert kernels.use(made, "fused") == "plain"
    assert kernels.candidates(made, narrow=True) == ["plain"]
    assert torch.equal(made(x, made.initial_state(3))[0], before)


@needs_kernels
def test_other_types_and_tracing_go_the_plain_way() -> None:
    stack, angles, x = make("conv", 2, (2, 3), 1, 16, 16, 1)
    kernels.use(stack, "fused")
    double = stack.double()(x.double(), angles)
    torch.testing.assert_close(double.float(), stack.float()(x, angles), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(stack, (x,)).module()
    torch.testing.assert_close(exported(x), stack(x), rtol=1e-4, atol=1e-5)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from hrm_agent.kernels import stack

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
    assert kernels.candidates(stack) == ["plain"]
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
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_fails_in_the_background_is_told_to_whoever_asks(no_compiler: None) -> None:
    build.begin()
    with pytest.raises(NoKernels, match=r"no C\+\+ compiler found \(no-such-compiler\)"):
        build.library()
    assert build.is_ready()
    assert build.compiling_for() is None


COUNTING = """#!/bin/sh
[ "$1" = --version ] && exit 0
echo run >> {log}
exec {compiler} -O0 "$@"
"""


@needs_kernels
@pytest.mark.parametrize("cache", ["cache", "file/cache"])
def test_kernels_are_compiled_once_in_the_background_even_without_a_cache(
    cache: str, no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # nothing can lie below it, whoever asks
    compiler = tmp_path / "c++"
    compiler.write_text(COUNTING.format(log=tmp_path / "log", compiler=next(filter(shutil.which, build.COMPILERS))))
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "FLAGS", ("-std=c++17", "-shared", "-fPIC", "-O0"))
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("HRM_AGENT_CACHE", str(tmp_path / cache))
    assert not build.is_ready()
    build.begin()
    assert build.library() is build.library()
    assert build.is_ready()
    files = len(list(build.SOURCES.glob("*.cpp")))
    assert (tmp_path / "log").read_text().splitlines() == ["run"] * (files + 1)  # and one that links them
    told = [message.partition(", their")[0] for message in caplog.messages]
    assert told == ([] if cache == "cache" else ["the C++ kernels are compiled anew in every process"])


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


@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity files are not here")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("fused", marks=needs_kernels),
        pytest.param("fused_bf16", marks=needs_bfloat16),
        pytest.param("compiled", marks=pytest.mark.slow),  # a minute of compiling
    ],
)
def test_parity_on_fast_paths(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(f) for f in sorted(PARITY.glob("*.safetensors"))]
    assert parity.main(["--path", path, *files]) == 0, capsys.readouterr().out


@needs_kernels
@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity files are not here")
def test_parity_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hrm_agent.kernels import paths

    right = paths.run_stack
    monkeypatch.setattr(paths, "run_stack", lambda *given: right(*given) * (1 + 1e-4))
    assert parity.main(["--path", "fused", str(PARITY / "trm_attention.safetensors")]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.skipif(not kernels.available("fused"), reason="no C++ compiler")
def test_bfloat16_is_known() -> None:
    assert has_bfloat16() == kernels.available("fused_bf16")
