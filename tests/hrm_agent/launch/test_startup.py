"""The first second of a command: it speaks before torch is there, and what can wait is imported later."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apart import run_apart
from commands import tiny_run
from hrm_agent import recurrence
from hrm_agent.algos.optim import FusedAdamW
from hrm_agent.kernels.cpu import build
from hrm_agent.launch import startup
from hrm_agent.launch.cli import say_error
from hrm_agent.training.waiting import Waiting


def test_a_command_speaks_before_torch_is_imported() -> None:
    code = (
        "import sys; from hrm_agent.launch import startup; startup.begin('train', ['kernel=plain']);"
        "print('torch' in sys.modules)"
    )
    done = run_apart(code)
    assert done.stdout.split() == ["False"], done.stderr
    assert done.stderr.splitlines() == ["hrm_agent.train starts: importing torch"]


def test_importing_loads_no_torch_no_extra_and_no_plugin_and_the_public_names_are_there() -> None:
    code = (
        "import sys, hrm_agent; assert 'torch' not in sys.modules; from hrm_agent.agents.registry import registry;"
        "extras = {'onnx', 'onnxruntime', 'onnxscript', 'huggingface_hub', 'hydra', 'matplotlib'};"
        "print(registry._searched, sorted(extras & set(sys.modules)));"
        "print(all(getattr(hrm_agent, name) is not None for name in hrm_agent.__all__))"
    )
    done = run_apart(code)
    assert done.stdout.split() == ["False", "[]", "True"], done.stderr


TRAINED = """
import sys
from hrm_agent import train
from hrm_agent.experience import collector
def advance(*given):
    print(*(name for name in ("tensorboard", "matplotlib", "torch._dynamo", "sympy", "stable_baselines3", "minigrid")
            if name in sys.modules), ".", sep=" ")
    raise KeyboardInterrupt
collector.Collector._advance = advance
sys.argv = ["hrm_agent.train", *sys.argv[1:]]
train.main()
"""


@pytest.mark.thorough
def test_the_first_frame_needs_no_tensorboard_and_no_compiler_of_torch(tmp_path: Path) -> None:
    done = run_apart(TRAINED, *tiny_run(tmp_path / "run"))
    assert done.stdout.split() == ["."], done.stderr


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (["env=DynamicMaze-v0", "seed=1"], True),
        (["kernel=fused"], True),
        (["kernel=plain"], False),
        (["kernel=compiled"], False),
        (["device=cuda"], False),
        (["resume=runs/somewhere"], False),
    ],
)
def test_kernels_compile_where_they_will_be_asked_for(
    arguments: list[str], begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(build, "begin", lambda: begun.append(True))
    startup.begin("train", arguments)
    assert not gc.isenabled()  # imports are not walked
    startup.over()
    assert gc.isenabled()
    assert begun == [True] * begins


@pytest.mark.thorough  # compiles everything anew; `test_registration.py` and `test_kernels.py` have one cache each
def test_a_run_needs_no_folder_that_it_can_write_but_its_own(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()  # nothing can lie below it, whoever asks
    nowhere = {name: str(file / "x") for name in ("HOME", "XDG_CACHE_HOME", "HRM_AGENT_CACHE", "NUMBA_CACHE_DIR")}
    quick = {"HRM_AGENT_CXXFLAGS": "-O0"}  # what is compiled matters here, not how well
    small = [a for a in tiny_run(tmp_path / "run") if not a.startswith("env")]
    done = subprocess.run(
        [sys.executable, "-m", "hrm_agent.train", *small, "env=CueMaze-v0", "total_steps=32"],
        env={**os.environ, **nowhere, **quick, "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "agents" / "last" / "agent.json").is_file()
    both = ("the environments", "the C++ kernels") if recurrence.available("fused") else ("the environments",)
    for what in both:
        assert done.stderr.count(f"{what} are compiled anew in every process") == 1, done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_long_it_takes_and_nothing_of_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Waiting("compiling"):
        while "(0 s)" not in terminal.getvalue():
            time.sleep(0.01)
    assert terminal.getvalue().startswith("\r\x1b[Kcompiling (0 s)")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_elsewhere_it_is_one_line_and_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting(lambda: "compiling"):
        pass
    with Waiting("compiling", quiet=True):
        pass
    assert capsys.readouterr().err == "compiling\n"


def test_an_error_takes_the_place_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    startup.begin("train", ["kernel=plain"])
    say_error("no such setting")
    assert terminal.getvalue().endswith("\r\x1b[Kerror: no such setting\n")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_our_adamw_is_torch_s_bit_for_bit_and_reads_its_state(weight_decay: float) -> None:
    def train(weights: list[nn.Parameter], optimizer: FusedAdamW | torch.optim.Optimizer, first: int) -> None:
        for step in range(first, first + 4):
            for number, weight in enumerate(weights):
                noise = torch.Generator().manual_seed(100 * step + number)
                weight.grad = torch.randn(weight.shape, generator=noise) if number or step % 2 else None
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            optimizer.step()

    def copy(weights: list[nn.Parameter]) -> list[nn.Parameter]:
        return [nn.Parameter(w.detach().clone()) for w in weights]

    def equal(a: list[nn.Parameter], b: list[nn.Parameter]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    torch.manual_seed(0)
    settings = (0.1, (0.9, 0.99), 1e-5, weight_decay)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(3,), (20, 7), ()]]
    theirs = copy(ours)
    mine, torchs = FusedAdamW(ours, *settings), torch.optim.AdamW(theirs, *settings, fused=True)
    train(ours, mine, 0)
    train(theirs, torchs, 0)
    assert equal(ours, theirs)
    saved, known = mine.state_dict(), torchs.state_dict()
    assert saved["state"].keys() == known["state"].keys()
    for number, state in saved["state"].items():
        assert {name: value.dtype for name, value in state.items()} == {
            name: value.dtype for name, value in known["state"][number].items()
        }
    resumed = copy(ours)
    other = FusedAdamW(resumed, *settings)
    other.load_state_dict(known)
    train(ours, mine, 4)
    train(theirs, torchs, 4)
    train(resumed, other, 4)
    assert equal(ours, theirs)
    assert equal(ours, resumed)
    with pytest.raises(ValueError, match="size of the group"):
        FusedAdamW(resumed[:1], *settings).load_state_dict(known)


def test_zeroed_state_is_the_optimizer_s_own() -> None:
    weight: Tensor = nn.Parameter(torch.ones(2))
    optimizer = FusedAdamW([weight], 0.1, (0.9, 0.999), 1e-8, 0.0)  # type: ignore[list-item]
    assert optimizer.state_dict()["state"] == {}
    optimizer.step()  # nothing has a gradient
    assert optimizer.state_dict()["state"] == {}
