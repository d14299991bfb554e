"""A second project (`tests/second_project/`): its environment, core and agent use public names only.

It is met twice: as pip leaves it behind (a folder and its metadata on the path), and, slowly, installed beside the
wheel in a new virtual environment. Both in an empty folder, by the same commands.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forks import Forks
from hrm_agent.cores import Core

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "tests" / "second_project"
PACKAGE = PROJECT / "second_project"
PUBLIC = {"hrm_agent", "hrm_agent.cores", "hrm_envs", "gymnasium", "numpy", "torch", "second_project"}
RUN = (
    "env=second_project:Corridor-v0", "core=ring", "core.hidden_size=32", "core.gain=0.75", "algo.num_envs=32",
    "algo.window=16", "algo.minibatch_windows=8", "log_every=512", "eval_every=0", "eval_episodes=64",
    "test_episodes=64", "threads=1", "hydra.run.dir=run",
)  # fmt: skip

Python = Callable[..., str]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file imports; the name is empty for a module as a whole."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def test_it_uses_public_names_alone() -> None:
    ours = set()
    for path in PACKAGE.rglob("*.py"):
        for module, name in imports(path):
            top = module.split(".")[0]
            assert module in PUBLIC or top in ("torch", "second_project") or top in sys.stdlib_module_names, module
            if top in ("hrm_agent", "hrm_envs"):
                ours.add(module)
                assert not name or name in importlib.import_module(module).__all__, f"{path.name}: {module}.{name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                assert node.attr == "__init__", f"{path.name}:{node.lineno} {node.attr}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hrm_agent":
                assert node.attr in importlib.import_module("hrm_agent").__all__, node.attr
    assert ours == {"hrm_agent", "hrm_agent.cores"}


def test_its_core_has_thirty_lines_at_most() -> None:
    source = (PACKAGE / "cores.py").read_text()
    assert len(source.splitlines()) <= 30
    (core,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    assert [ast.unparse(base) for base in core.bases] == [Core.__name__]


@pytest.mark.thorough
def test_as_pip_leaves_it_behind(forks: Forks, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "empty"
    shutil.copytree(PACKAGE, site / "second_project", ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(site / "second_project-1.0.dist-info")
    folder.mkdir()

    def python(*arguments: str) -> str:
        (done,) = forks.run([[*arguments]], [{"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}], folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    trained = train(python, folder, frames=512)
    report = play(python, "run")
    assert 0 <= report["agent"] <= 1
    assert report["begins_anew"]
    shutil.copytree(trained, site / "second_project" / "trained")
    assert play(python) == report  # the agent that ships, by its name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installed_beside_the_wheel_it_learns(tmp_path: Path) -> None:
    ours, theirs, wheels = tmp_path / "ours", tmp_path / "theirs", tmp_path / "wheels"
    hidden = shutil.ignore_patterns(".*", "runs", "dist", "__pycache__")
    shutil.copytree(ROOT, ours, ignore=hidden)  # nothing is left behind in the checkout
    shutil.copytree(PROJECT, theirs, ignore=hidden)
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    # The dependencies come from here, neither project does: an editable install is a `.pth`, which PYTHONPATH does
    # not read.
    environment = {
        **os.environ,
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
    }
    python = interpreter(tmp_path / "venv" / "bin" / "python", tmp_path / "empty", environment)

    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = interpreter(tmp_path / "venv" / "bin" / "python", tmp_path / "unused", alone)

    def install(source: Path, name: str) -> None:
        pip("-m", "pip", "wheel", "--no-deps", "-w", str(wheels), str(source))
        (wheel,) = wheels.glob(f"{name}-*.whl")
        pip("-m", "pip", "install", "--no-deps", "--force-reinstall", str(wheel))

    install(ours, "hrm_agent")
    install(theirs, "second_project")
    shown = python(
        "-c", "import hrm_agent, hrm_envs, second_project as s; print(*(m.__file__ for m in (hrm_agent, hrm_envs, s)))"
    )
    assert all(str(tmp_path / "venv") in path for path in shown.split())

    trained = train(python, tmp_path / "empty", frames=20_480)
    report = play(python, "run")
    assert report["random"] < 0.6
    assert report["agent"] > 0.9
    shutil.copytree(trained, theirs / "second_project" / "trained")
    install(theirs, "second_project")  # with its agent
    assert play(python) == report
    python("-m", "hrm_agent.evaluate", "agent=Corridor-Ring-v0", "episodes=32", "out=by_name.json")
    by_folder, by_name = (json.loads((tmp_path / "empty" / name).read_text()) for name in ("eval.json", "by_name.json"))
    assert by_name["agent"] == "Corridor-Ring-v0"
    assert by_name["success"] == by_folder["success"]


def write_metadata(folder: Path) -> None:
    """What pip writes of a package: its name, and the entry points that its `pyproject.toml` declares."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def interpreter(executable: Path, folder: Path, environment: dict[str, str]) -> Python:
    """Runs `executable` with arguments in `folder`, which is made, and returns what it prints."""
    folder.mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(executable), *arguments],
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def train(python: Python, folder: Path, frames: int) -> Path:
    """Train in `folder`, go on for another quarter, evaluate; returns the folder of the agent."""
    python("-m", "hrm_agent.train", *RUN, f"total_steps={frames}")
    python("-m", "hrm_agent.train", "resume=run", RUN[0], f"total_steps={frames * 5 // 4}")  # its module, typed again
    python("-m", "hrm_agent.evaluate", "run=run", "episodes=32", "out=eval.json")
    report = json.loads((folder / "eval.json").read_text())
    assert (report["env"], report["core"], report["carry"]) == ("second_project:Corridor-v0", "ring", "gate")
    last = json.loads((folder / "run" / "agents" / "last" / "agent.json").read_text())
    assert last["info"]["frames"] >= frames * 5 // 4
    assert sorted(path.name for path in folder.iterdir()) == ["eval.json", "run"]
    trained = folder / "run" / "agents" / "best"
    policy = json.loads((trained / "agent.json").read_text())["policy"]
    assert (policy["core"], policy["core_options"]) == ("ring", {"gain": 0.75})
    return trained


def play(python: Python, *run: str) -> dict[str, Any]:
    """What the project's own program says of the agent of a run, or of its own."""
    report: dict[str, Any] = json.loads(python("-m", "second_project.play", *run))
    return report
