"""What a release needs beside the code."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import yaml

import hrm_agent

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes is not None
    assert {project["version"], citation["version"], changes[1]} == {hrm_agent.__version__}
    assert citation["license"] == project["license"]
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text()


def test_what_tries_a_release_publishes_nothing() -> None:
    script = ROOT / ".ci" / "release"
    assert os.access(script, os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert ".ci/release dist" in [step.get("run") for step in job["steps"]]
    assert workflow["permissions"] == {"contents": "read"}
    for text in (script.read_text(), (ROOT / ".github" / "workflows" / "release.yml").read_text()):
        assert not re.search(r"twine upload|pypi|secrets\.", text)


def test_the_forms_of_issues_can_be_read() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bf]*.yml"))
    assert len(forms) == 2
    for form in forms:
        body = yaml.safe_load(form.read_text())["body"]
        asked = [part["id"] for part in body if part["type"] != "markdown"]
        assert len(asked) == len(set(asked)) == 3
