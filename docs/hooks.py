"""What mkdocs adds to the pages in this folder: environments, settings, and the pages of `experiments/`.

Environments' pages are made from docstrings and from the spaces of the environments themselves, so that nothing is
written twice. Pages of experiments are those of the repository; what they link to outside the site stays as text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from inspect import cleandoc
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import gymnasium
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "envs"), str(ROOT)]

from hrm_agent.baselines.config import Options  # noqa: E402
from hrm_agent.launch.help import explain, plain, reference, settings_of  # noqa: E402
from hrm_agent.launch.plot import PlotOptions  # noqa: E402
from hrm_agent.launch.search import SearchOptions  # noqa: E402
from hrm_agent.launch.study import StudyOptions  # noqa: E402
from hrm_envs.registration import MAZES  # noqa: E402

COMMANDS = ("evaluate", "watch", "play", "probe", "shifts", "export", "solve", "chess_positions", "sweep_table")
EXPERIMENTS = "experiments"
SHOWN = (".md", ".png", ".svg", ".gif")
OUTSIDE = re.compile(rf"\]\((?:\.\./)+{EXPERIMENTS}/")
SOURCE_OF = re.compile(r"\[`([\w-]+)`\]\((?:\.\./)+envs/hrm_envs/[\w/]+\.py\)")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def environment_ids() -> list[str]:
    """Of `hrm_envs`, as far as they can be made without a further package; the default one first."""
    return [*MAZES, "ChessEndgame-v0", "CueMaze-v0", "Hanoi-v0"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The generated pages into the navigation."""
    for entry in config.nav or []:
        if entry.get("Environments"):
            pages = [{name: f"environments/{name}.md"} for name in environment_ids()]
            entry["Environments"] = [entry["Environments"], *pages]
    results = f"{EXPERIMENTS}/README.md"  # has an entry of its own
    claims = [path for path in experiment_files() if path.endswith("/README.md") and path != results]
    notes = [f"{EXPERIMENTS}/LOG.md", f"{EXPERIMENTS}/GPU.md"]
    config.nav.append({"Experiments": [*claims, *notes]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that exist nowhere else, and files of the repository outside this folder."""
    for name in environment_ids():
        files.append(File.generated(config, f"environments/{name}.md", content=environment_page(name)))
    for path in experiment_files():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that are right in the repository, made right in the site.

    There `experiments/` is a folder beside the pages, and an environment, whose link leads to its source in the
    repository, has a page.
    """
    source = page.file.src_uri
    if source.startswith(f"{EXPERIMENTS}/"):
        return LINK.sub(lambda match: _inside(match, source, files), markdown)
    folder = str(PurePosixPath(source).parent)
    if source == "settings.md":
        markdown = markdown.replace("<!-- settings -->", settings_tables())
    markdown = SOURCE_OF.sub(lambda match: _page_of(match, folder), markdown)
    return OUTSIDE.sub(f"]({relpath(EXPERIMENTS, folder)}/", markdown)


def experiment_files() -> list[str]:
    """Pages and pictures of `experiments/` that are part of the repository, as its paths."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", EXPERIMENTS]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # not a checkout: a source distribution, for instance
        listed = [str(path.relative_to(ROOT)) for path in (ROOT / EXPERIMENTS).rglob("*")]
    return sorted(path for path in listed if path.endswith(SHOWN) and (ROOT / path).is_file())


def _inside(match: re.Match[str], source: str, files: Files) -> str:
    """A link of an experiment's page; its text alone where the target is in the repository but not in the site."""
    target = match[3].partition("#")[0]
    path = normpath(str(PurePosixPath(source).parent / target))
    if "://" in target or not target or files.get_file_from_path(path) or files.get_file_from_path(f"{path}/README.md"):
        return match[0]
    return match[2] if (ROOT / path).exists() else match[0]  # mkdocs warns of what exists nowhere


def _page_of(match: re.Match[str], folder: str) -> str:
    name = match[1]
    return f"[`{name}`]({relpath(f'environments/{name}.md', folder)})" if name in environment_ids() else match[0]


def environment_page(name: str) -> str:
    """An environment's page in the form that Gymnasium's own have, Markdown."""
    env = gymnasium.make(name)
    what, sections = _split(type(env.unwrapped).__doc__ or "")
    config = replace(env.unwrapped.config, max_episode_steps=env.spec.max_episode_steps)
    parts = [
        f"# {name}",
        f"![{name}](../images/{name}.png){{ width=320 }}",
        _table(
            ("", ""),
            [
                ("Action space", f"`{env.action_space}`"),
                ("Observation space", f"`{env.observation_space}`"),
                ("Import", f'`gymnasium.make("hrm_envs:{name}")`'),
                ("Vector environment", f'`gymnasium.make_vec("hrm_envs:{name}", num_envs=64)`'),
            ],
        ),
        what,
    ]
    for title, text in sections.items():
        parts += [f"## {title}", text]
        if title == "Arguments":
            parts += [_arguments(config), _difference(name)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """The sentence at the beginning, and the sections by their titles; `Raises:` is left to the reference."""
    text = cleandoc(docstring).partition("\nRaises:")[0]
    what, *sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    texts = [part.strip() for part in sections]
    return what.strip(), dict(zip(texts[::2], texts[1::2], strict=True))


def _arguments(config: Any) -> str:
    """Each parameter with its value in this environment and the description in its class."""
    descriptions = explain(type(config))
    rows = [(f"`{f.name}`", f"`{getattr(config, f.name)!r}`", descriptions[f.name]) for f in fields(config)]
    return _table(("parameter", "default", "meaning"), rows)


def settings_tables() -> str:
    """Every setting of every command, Markdown: name, default, values and meaning, as the code says them."""
    commands = {name: getattr(import_module(f"hrm_agent.{name}"), name) for name in COMMANDS}
    commands |= {"plot": PlotOptions, "study": StudyOptions, "search": SearchOptions, "baselines": Options}
    others = [(name, settings_of(command)) for name, command in commands.items()]
    parts = []
    for title, settings in [*reference(), *others]:
        rows = [(f"`{s.name}`", f"`{plain(s.default)}`".replace("`???`", ""), s.values, s.meaning) for s in settings]
        parts.append(f"## {title}\n\n{_table(('setting', 'default', 'values', 'meaning'), rows)}")
    return "\n\n".join(parts)


def _difference(name: str) -> str:
    changed = ", ".join(f"{key}={value!r}" for key, value in MAZES.get(name, {}).items())
    return f"`{name}` is `DynamicMaze-v0` with `{changed}`." if changed else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
