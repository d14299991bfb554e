"""Agents on the model hub. The hub is a folder here: what is tested is which files go up, come down, and are read."""

from __future__ import annotations

import importlib
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm_agent import Agent
from hrm_agent.agents.hub import FILES, HubError, from_hub, push_to_hub
from hrm_agent.agents.probe import PROBE_FILE, DistanceProbe, identify, latents_per_token, save_probe
from tiny import ACTIONS, GRID, MAZE, tiny_policy

hub = pytest.importorskip("huggingface_hub")


class ConnectError(Exception):
    """As the library's HTTP client raises it: neither an OSError nor a ValueError."""


class FakeHub:
    """`create_repo`, `upload_folder` and `snapshot_download` on a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.tokens = root, [], []  # type: ignore[var-annotated]

    def api(self, token: str | None = None) -> FakeHub:
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        if repo_id.startswith("forbidden/"):
            raise hub.errors.HFValidationError("403 Client Error.\n\nNot yours.")
        if repo_id.startswith("offline/"):
            raise ConnectError("[Errno -3] Temporary failure\nin name resolution")
        self.calls.append((repo_id, private, exist_ok))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> None:
        self._copy(Path(folder_path), self.root / repo_id, allow_patterns)

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, token: str | None, allow_patterns: list[str]
    ) -> str:
        if repo_id.startswith("offline/"):
            raise ConnectError("[Errno -3] Temporary failure\nin name resolution")
        if not (self.root / repo_id).is_dir() or revision == "absent":
            raise hub.errors.LocalEntryNotFoundError("404\nNot Found")
        local = self.root / "cache" / repo_id
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True)
        self._copy(self.root / repo_id, local, allow_patterns)
        return str(local)

    def _copy(self, source: Path, target: Path, patterns: list[str]) -> None:
        for file in source.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in patterns):
                shutil.copy(file, target / file.name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake.api)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    return fake


def tiny_agent() -> Agent:
    return Agent(tiny_policy(), GRID, ACTIONS, {"env": "DynamicMaze-v0", "env_options": MAZE})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_library_still_takes_what_we_give_it() -> None:
    import inspect

    for function, keywords in (
        (hub.HfApi.create_repo, {"private", "exist_ok"}),
        (hub.HfApi.upload_folder, {"repo_id", "folder_path", "allow_patterns", "commit_message"}),
        (hub.snapshot_download, {"repo_id", "revision", "token", "allow_patterns"}),
    ):
        assert keywords <= set(inspect.signature(function).parameters)


def test_an_agent_goes_up_and_comes_down(fake: FakeHub) -> None:
    agent = tiny_agent()
    address = push_to_hub(agent, "me/maze", private=True, token="secret")
    assert (fake.calls, fake.tokens) == ([("me/maze", True, True)], ["secret"])
    assert address == "https://huggingface.co/me/maze"
    assert names(fake.root / "me/maze") == sorted(FILES)
    back = from_hub("me/maze", segments=2)
    assert back.policy.segments == 2
    assert back.info == agent.info
    weights = back.policy.state_dict()
    assert all(torch.equal(t, weights[name]) for name, t in agent.policy.state_dict().items())


def test_a_folder_goes_up_with_its_own_page_and_without_its_other_files(fake: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "agents" / "best"
    tiny_agent().save(folder)
    (folder / "README.md").write_text("# Written by hand\n")
    (folder / "secrets.env").write_text("TOKEN=1")
    push_to_hub(tmp_path / "run", "me/maze")
    assert names(fake.root / "me/maze") == sorted(FILES)
    assert (fake.root / "me/maze/README.md").read_text() == "# Written by hand\n"
    assert (fake.root / "me/maze/agent.json").read_bytes() == (folder / "agent.json").read_bytes()
    assert (fake.root / "me/maze/agent.safetensors").read_bytes() == (folder / "agent.safetensors").read_bytes()


def test_the_probe_beside_the_weights_goes_with_them(fake: FakeHub, tmp_path: Path) -> None:
    agent = tiny_agent()
    agent.save(tmp_path / "agent")
    probe = DistanceProbe(torch.ones(1, latents_per_token(agent.policy)), torch.ones(1), identify(agent.policy))
    save_probe(tmp_path / "agent", probe)
    push_to_hub(tmp_path / "agent", "me/maze")
    assert names(fake.root / "me/maze") == sorted([*FILES, PROBE_FILE])
    back = from_hub("me/maze").load_probe()
    assert back is not None
    assert torch.equal(back.weights, probe.weights)


def test_a_card_with_words_of_its_owner_goes_up_as_it_is(fake: FakeHub, tmp_path: Path) -> None:
    tiny_agent().save(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace("## Use", "## Thanks\n\nTo all.\n\n## Use"))
    push_to_hub(tmp_path, "me/maze")
    assert "To all." in card.read_text()
    assert (fake.root / "me/maze/README.md").read_bytes() == card.read_bytes()


def test_what_else_a_repository_holds_stays_there(fake: FakeHub) -> None:
    push_to_hub(tiny_agent(), "me/maze")
    (fake.root / "me/maze/agent.py").write_text("raise SystemExit('executed')")
    (fake.root / "me/maze/weights.pkl").write_bytes(b"x")
    from_hub("me/maze")
    assert names(fake.root / "cache/me/maze") == sorted(FILES)


def test_nothing_goes_up_that_cannot_be_loaded(fake: FakeHub, tmp_path: Path) -> None:
    tiny_agent().save(tmp_path / "agent")
    weights = tmp_path / "agent" / "agent.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        push_to_hub(tmp_path / "agent", "me/maze")
    assert fake.calls == []


def test_refusals_are_one_line(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: tuple[Any, ...] = (
        lambda: push_to_hub(tiny_agent(), "forbidden/maze"),
        lambda: push_to_hub(tiny_agent(), "offline/maze"),
        lambda: from_hub("offline/maze"),
        lambda: from_hub("me/absent"),
        lambda: from_hub("me/absent", revision="absent"),
    )
    for call in refused:
        with pytest.raises(HubError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "/" in str(caught.value)
        assert caught.value.__cause__ is not None
    (fake.root / "me/empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"agent\.json missing"):
        from_hub("me/empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install 'hrm-agent\\[hub\\]'"):
        from_hub("me/maze")


def test_the_former_name_warns_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hrm_agent.hub", raising=False)
    with pytest.warns(DeprecationWarning, match=r"hrm_agent\.hub is now hrm_agent\.agents\.hub"):
        former = importlib.import_module("hrm_agent.hub")
    assert (former.from_hub, former.push_to_hub, former.HubError) == (from_hub, push_to_hub, HubError)
