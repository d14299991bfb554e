"""Agents on the Hugging Face hub: `push_to_hub` and `from_hub`. Needs the extra `hub`.

Only the files of an agent are transferred: `agent.json`, `agent.safetensors`, the card `README.md` and, where there is
one, `probe.safetensors`. Other files of a repository are not downloaded, and nothing in it is executed.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hrm_agent.agents.agent import WEIGHTS_FILE, Agent
from hrm_agent.agents.card import CARD_FILE
from hrm_agent.agents.description import AGENT_FILE, find_agent_folder
from hrm_agent.agents.probe import PROBE_FILE
from hrm_agent.files.reading import read_bytes

FILES = [AGENT_FILE, WEIGHTS_FILE, CARD_FILE]
"""Of every agent."""
TRANSFERRED = [*FILES, PROBE_FILE]


class HubError(ValueError):
    """The hub cannot be reached, or refused; the message is one line."""


def push_to_hub(
    agent: Agent | str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload an HRM-Agent policy",
) -> str:
    """Upload an agent with its card; the repository is created if needed.

    Args:
        agent: an agent, or the folder of an agent or of a training run. It is loaded before anything is sent.
        repo_id: `owner/name`.
        private: for a repository that is created.
        token: of a user with write access; None: the one that `hf auth login` stored.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        ValueError: there is no agent.
        HubError: the hub cannot be reached or refuses.
    """
    hub = _library()
    with TemporaryDirectory() as staged:
        folder = Path(staged)
        if isinstance(agent, Agent):
            agent.save(folder)
        else:
            source = find_agent_folder(Path(agent))
            Agent.load(source).save(folder)
            card = source / CARD_FILE
            if card.is_file() and not card.is_symlink():  # perhaps edited by hand; a link may lead to anything
                (folder / CARD_FILE).write_bytes(read_bytes(card, links=False))
        try:
            api = hub.HfApi(token=token)
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=str(folder), allow_patterns=TRANSFERRED, commit_message=message
            )
        except Exception as error:  # its HTTP client has errors of its own kind
            raise HubError(f"{repo_id}: {_line(error)}") from error
    return str(address)


def from_hub(repo_id: str, revision: str | None = None, token: str | None = None, **settings: Any) -> Agent:
    """Download an agent (or take it from the hub's local cache) and load it.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; a commit always gives the same agent.
        token: for a private repository; None: the one that `hf auth login` stored.
        settings: overrides, `carry`, `segments`, `stop`, `stop_threshold`, see `Agent.load`.
    Raises:
        ValueError: there is no agent in the repository, or an override is not possible.
            HubError: the hub cannot be reached, or has no such repository or revision.
    """
    hub = _library()
    try:
        folder = hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=TRANSFERRED)
    except Exception as error:  # as above
        raise HubError(f"{repo_id}: {_line(error)}") from error
    return Agent.load(folder, **settings)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(f"the hub needs an extra: pip install 'hrm-agent[hub]' ({error})") from None
    return huggingface_hub


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
