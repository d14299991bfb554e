"""A number in a page has a record behind it: tables are what the JSON says, records have what they must."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from hrm_agent.launch.hydra_plugin import GENERIC_ALGO

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted(ROOT.glob("experiments/*/*.json"))
STUDIES = sorted(p.parent for p in ROOT.glob("experiments/*/study.yaml"))
REQUIRED = {
    "agent", "env", "algo", "core", "carry", "segments", "seed", "frames", "seconds", "success", "success_ci95",
    "spl", "commit",
}  # fmt: skip


@pytest.fixture(scope="module")
def study_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", ROOT / "experiments" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "study.yaml").read_text())


def test_memory_is_of_the_one_command_and_failures_are_told(tmp_path: Path) -> None:
    """In a process of its own: a child's peak is never below that of the process that began it."""
    program = f"""
import subprocess, sys
sys.path.insert(0, {str(ROOT / "experiments")!r})
from study import run_logged
log = open({str(tmp_path / "log")!r}, "a")
print(*(run_logged([sys.executable, "-c", f"print(len(bytearray({{mb}} << 20)))"], log) for mb in (300, 1)))
try:
    run_logged([sys.executable, "-c", "raise SystemExit(3)"], log)
except subprocess.CalledProcessError as error:
    print(error.returncode)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    large, small, code = map(int, done.stdout.split())
    assert large > 300
    assert small < 150
    assert code == 3
    assert (tmp_path / "log").read_text().split() == [str(300 << 20), str(1 << 20)]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_tables_say_what_the_records_say(folder: Path, study_module: ModuleType) -> None:
    for page in (folder / "README.md", ROOT / "README.md"):
        assert page.read_text() == study_module.filled(page, folder, settings_of(folder))
    assert f"<!-- table {folder.name} -->" in (folder / "README.md").read_text()


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_records_are_whole_and_belong_to_the_study(folder: Path, study_module: ModuleType) -> None:
    study, records = settings_of(folder), study_module.load(folder / "results.json")
    assert records or study.get("own_table")  # a page that stands on its references may wait for its first agent
    for record in records:
        assert set(record) >= REQUIRED
        assert record["seed"] in study_module.arm_of(study, record["agent"])["seeds"]
        low, high = record["success_ci95"]
        assert low <= record["success"] <= high
    keys = [(r["agent"], r["seed"]) for r in records]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_outcomes_on_levels_and_lesions_belong_to_records(folder: Path, study_module: ModuleType) -> None:
    records = {(r["agent"], r["seed"]): r for r in study_module.load(folder / "results.json")}
    for outcome in study_module.load(folder / "levels.json"):
        won = outcome["success"]
        assert won.count("1") / len(won) == pytest.approx(records[outcome["agent"], outcome["seed"]]["success"])
    lesions = settings_of(folder).get("lesions", {})
    for lesion in study_module.load(folder / "lesions.json"):
        assert (lesion["agent"], lesion["seed"]) in records
        assert lesion["options"] == lesions[lesion["lesion"]]["options"]
        assert lesion["agent"] in lesions[lesion["lesion"]]["arms"]


# Where the records come from


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def _whole_history() -> None:
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no checkout with its history")


@pytest.mark.usefixtures("_whole_history")
@pytest.mark.parametrize("file", RECORDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_commit_of_a_record_is_there(file: Path) -> None:
    """In the history of what is checked out, or else named on the study's page."""
    page = file.with_name("README.md")
    told = page.read_text() if page.exists() else ""
    for commit in set(re.findall(r'"commit": "([^"]*?)(?:-dirty)?"', file.read_text())):
        if f"`{commit}`" not in told:
            assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, commit


@pytest.mark.usefixtures("_whole_history")
@pytest.mark.parametrize("agent", ["DoorKey", "MemoryS7", "MemoryS7-reset"])
def test_a_command_leans_on_no_later_settings(agent: str, study_module: ModuleType) -> None:
    """What has shipped for an environment since the commit of the record is in the record's command."""
    [record] = [r for r in study_module.load(ROOT / "experiments/foreign/results.json") if r["agent"] == agent]
    earlier = yaml.safe_load((ROOT / "configs/earlier/november_2026.yaml").read_text())
    generic = set(leaves({"algo": {**GENERIC_ALGO["ppo"], **earlier["algo"]}}))  # as at these commits already
    for file in (f"configs/env/{record['env']}.yaml", f"configs/recommended/algo/{record['env']}/ppo.yaml"):
        then = yaml.safe_load(git("show", f"{record['commit']}:{file}").stdout) or {}
        now = yaml.safe_load((ROOT / file).read_text())
        for name, value in leaves(now):
            if (name, value) not in generic | set(leaves(then)):
                assert re.search(rf"\b{re.escape(name)}=", record["command"]), f"{name}={value} shipped later"


def leaves(node: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting of a configuration file by its full name, but for what describes the environment itself."""
    found: list[tuple[str, str]] = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found


def test_a_record_has_the_command_that_was_typed(tmp_path: Path, study_module: ModuleType) -> None:
    typed = "python -m hrm_agent.train env=X-v0 algo.gamma=0.98 hydra.run.dir=/somewhere/else seed=0"
    (tmp_path / "run.json").write_text(json.dumps({"command": typed}))
    assert study_module.command_of(tmp_path) == "python -m hrm_agent.train env=X-v0 algo.gamma=0.98 seed=0"
