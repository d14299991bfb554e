"""The wheel works on its own: installed into a new environment and run from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from commands import TINY_RUN
from hrm_agent import __version__

ROOT = Path(__file__).resolve().parents[3]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_trains_and_evaluates_from_an_empty_folder(tmp_path: Path) -> None:
    source, empty = tmp_path / "source", tmp_path / "empty"
    hidden = shutil.ignore_patterns(".*", "runs", "dist", "__pycache__")
    shutil.copytree(ROOT, source, ignore=hidden)  # nothing is left behind in the checkout
    empty.mkdir()
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "dist", source, cwd=empty)
    (wheel,) = (tmp_path / "dist").glob("hrm_agent-*.whl")
    with ZipFile(wheel) as archive:  # type checkers read the annotations of both packages
        assert {"hrm_agent/py.typed", "hrm_envs/py.typed"} <= set(archive.namelist())
        assert {"hrm_agent/playground/page/index.html", "hrm_agent/playground/page/app.js"} <= set(archive.namelist())

    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", wheel, cwd=empty)
    # The dependencies come from here, ours do not: an editable install is a `.pth`, which PYTHONPATH does not read.
    env = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}
    env["NUMBA_CACHE_DIR"] = str(tmp_path / "numba")
    shown = run(
        python, "-c", "import hrm_agent, hrm_envs; print(hrm_agent.__file__, hrm_envs.__file__)", cwd=empty, env=env
    )
    assert all(str(tmp_path / "venv") in path for path in shown.split())

    script = tmp_path / "venv" / "bin" / "hrm-agent"
    assert run(script, "--version", cwd=empty, env=env) == f"hrm-agent {__version__}\n"
    assert "Settings:" in run(script, "train", "--help", cwd=empty, env=env)  # the kept pages are in it

    train = [*TINY_RUN, "hydra.run.dir=run", "total_steps=64"]
    run(python, "-m", "hrm_agent.train", *train, cwd=empty, env=env)
    run(python, "-m", "hrm_agent.evaluate", "run=run", "episodes=8", "out=eval.json", cwd=empty, env=env)
    run(python, "-m", "hrm_agent.watch", "run=run", "episodes=1", "out=film.gif", cwd=empty, env=env)
    assert 0 <= json.loads((empty / "eval.json").read_text())["success"] <= 1
    assert (empty / "film.gif").read_bytes().startswith(b"GIF8")
    # The shipped agents are in it, and play at once.
    assert "DynamicMaze-TRM-v0" in run(python, "-m", "hrm_agent.agents", cwd=empty, env={**env, "COLUMNS": "200"})
    shipped = ("agent=DynamicMaze-TRM-v0", "episodes=50", "out=shipped.json")
    run(python, "-m", "hrm_agent.evaluate", *shipped, cwd=empty, env=env)
    assert json.loads((empty / "shipped.json").read_text())["success"] > 0.8
    assert sorted(p.name for p in empty.iterdir()) == ["eval.json", "film.gif", "run", "shipped.json"]
