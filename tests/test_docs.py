"""Every code block of the documentation and of the README runs or is checked, and the site builds without a warning.

A comment `<!-- test: MARK -->` before a block says what else is to be done with it:

    run [KEY=VALUE ...]   run the commands of a bash block, with these settings added; others are only checked
    setup run at PATH     put the folder of a training run at PATH before the block
    file PATH             write the block to a file instead of running it
    install NAME          make the entry points of a toml block those of an installed distribution
    without the network   a hub of folders stands in for the Hugging Face hub
    not installed         needs packages or devices that tests do not have: settings are checked, and nothing that they
                          load
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import yaml
from PIL import Image

import hrm_agent
from forks import Forks
from hrm_agent import bench, registry, search, study, supervise, train
from hrm_agent.agents import hub
from hrm_agent.baselines.config import Options
from hrm_agent.cores import CORES
from hrm_agent.environments.sources import import_source
from hrm_agent.launch import cli
from hrm_agent.launch.cli import check_jobs, open_options, parse_options, wants_help
from hrm_agent.launch.plot import PlotOptions
from hrm_agent.launch.resume import load_run
from hrm_agent.launch.search import SearchOptions
from hrm_agent.launch.search_space import Space
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.launch.study import StudyOptions, check_file
from hrm_agent.training.warm_start import parse_parts
from hrm_envs.endgames.batch import EndgameConfig
from hrm_envs.hanoi import HanoiConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- test: (.+?) -->\n+)?```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a reader types that is no command of ours.
SHELL = (
    r"pip install .+",
    r"pytest( -m slow)?",
    r"tensorboard --logdir runs",
    r"optuna-dashboard sqlite:///\S+",
    r"python -m venv \w+",
    r"source \w+/bin/activate",
    r"mkdocs (build --strict|serve)",
)
A_LITTLE = {
    "total_steps": 64, "algo.num_envs": 8, "algo.rollout_steps": 4, "algo.window": 4, "algo.minibatch_windows": 4,
    "core.hidden_size": 8, "eval_episodes": 2, "test_episodes": 0, "threads": 1,
}  # fmt: skip
"""What pages train by `hrm_agent.learn` instead of what they say."""
TINY_RUN = (
    "env=DynamicMaze-v0", "env.options.max_episode_steps=20", "core.hidden_size=8", "core.inner_size=8",
    "total_steps=256", "algo.num_envs=8",
    "algo.rollout_steps=4", "algo.window=4", "algo.minibatch_windows=4", "eval_episodes=4", "test_episodes=0",
    "threads=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _two_jobs_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_search_space.py` checks every choice of those that ship, which takes its time."""
    for where, name in ((cli, "expand_sweeps"), (Space, "jobs")):
        jobs = getattr(where, name)
        monkeypatch.setattr(where, name, lambda given, jobs=jobs: islice(jobs(given), 2))


class Block(NamedTuple):
    mark: str
    language: str
    code: str
    line: int  # of its first line in the page


def blocks_of(text: str) -> list[Block]:
    return [
        Block(found[1] or "", found[2], found[3], text.count("\n", 0, found.start(3))) for found in BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[list[str]]:
    """The words of every command of a bash block, without comments."""
    commands: list[list[str]] = []
    for line in block.code.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                command.append(word)
            elif command:
                commands.append(command)
                command = []
    return commands


def call(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m MODULE ARGUMENTS`, inside the test's process."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    found = importlib.util.find_spec(module)
    package = found is not None and found.submodule_search_locations is not None
    path = [*sys.path]
    try:
        importlib.import_module(f"{module}.__main__" if package else module).main()
    finally:
        sys.path[:] = path  # a command that reads folders leaves out the working folder


def check_training(arguments: list[str], monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    """As the command checks itself before a run, but for the memory of the machine that the tests run on."""
    monkeypatch.setattr(train, "check_memory", lambda *_: None)
    check: Callable[[Any], Any] = train.check_run
    if wants_help(arguments):
        arguments = [a for a in arguments if "=" in a]
    if not installed:
        arguments = [a for a in arguments if not a.startswith(("hydra/launcher", "hydra.launcher", "device="))]
        check = lambda cfg: settings(resolve(cfg))  # noqa: E731
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if "resume" in given:
        assert set(given) <= {"resume", *train.CHANGEABLE}
        load_run(Path(given["resume"]), train.COMMAND)
        return
    if given.get("init_from") == "SUPERVISED_RUN":  # stands for one that the reader has
        parse_parts(given.get("init_parts", "all"), "init_parts")
        arguments = [a for a in arguments if not a.startswith("init_")]
    check_jobs(open_options(arguments), "train", check)


def check_command(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    name = module.removeprefix("hrm_agent.")
    if name == "train":
        check_training(arguments, monkeypatch, installed)
    elif name == "supervise" and any(a.startswith("resume=") for a in arguments):
        assert {a.partition("=")[0] for a in arguments} <= {"resume", *supervise.CHANGEABLE}
    elif name == "supervise":
        few = [f"{split}_puzzles=4" for split in ("eval", "test")]  # which the check makes
        check_jobs(open_options([*arguments, *few]), "supervise", supervise.check_run)
    elif name == "bench":
        bench.check_options(bench.build_parser().parse_args(arguments))
    elif name == "plot":
        folders = [a for a in arguments if "=" not in a]
        assert folders
        PlotOptions(**parse_options([a for a in arguments if a not in folders], PlotOptions, ""))
    elif name == "search":
        own, typed = search.split(arguments)
        search.prepare(SearchOptions(**parse_options(own, SearchOptions, "")), typed)
    elif name == "study":
        check_file(arguments[:1])
        StudyOptions(**parse_options(arguments[1:], StudyOptions, ""))
        study.prepare(Path(arguments[0]), StudyOptions(out="checked"))
    elif name == "parity":
        assert importlib.util.find_spec(module)  # its arguments are files that the reader must have
    else:
        command = Options if name == "baselines" else getattr(importlib.import_module(module), name)
        options = parse_options(arguments, command, "")
        if name == "baselines":
            from hrm_agent.baselines.training import BaselineRun, RunConfig

            BaselineRun(RunConfig.parse({key: value for key, value in options.items() if key != "out"}))


def do_bash(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    marked, *added = block.mark.split() or [""]
    for words in commands_of(block):
        if words[0] == "hrm-agent":
            words = ["python", "-m", f"hrm_agent.{words[1]}", *words[2:]]
        if words[:2] == ["python", "-m"] and words[2].startswith("hrm_agent."):
            if marked == "run":
                call(words[2], [*words[3:], *added], monkeypatch)
            else:
                check_command(words[2], words[3:], monkeypatch, installed=block.mark != "not installed")
        elif words[0] == "torchrun":
            at = words.index("-m")
            check_command(words[at + 1], words[at + 2 :], monkeypatch, installed=block.mark != "not installed")
        elif words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
            assert importlib.util.find_spec(words[2])
        else:
            text = " ".join(words)
            assert any(re.fullmatch(pattern, text) for pattern in SHELL), f"nothing runs or checks {text!r}"


def do_python(block: Block, page: Path, names: dict[str, Any]) -> None:
    # Empty lines before it: an error then names the line of the page.
    exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


def install(name: str, toml: str, folder: Path) -> None:
    """What `pip install -e` leaves: metadata, and the folder on the path behind the standard library."""
    sys.path.append(str(folder))
    points = tomllib.loads(toml)["project"]["entry-points"]
    sections = [
        [f"[{group}]", *(f"{key} = {value}" for key, value in found.items())] for group, found in points.items()
    ]
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(line for lines in sections for line in lines) + "\n")
    importlib.invalidate_caches()


class FolderHub:
    """What `hrm_agent.agents.hub` uses of `huggingface_hub`, with a folder for each repository."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def HfApi(self, token: str | None = None) -> FolderHub:
        return self

    def create_repo(self, repo_id: str, **_: Any) -> str:
        (self.root / repo_id).mkdir(parents=True)
        return f"hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: str, **_: Any) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id: str, **_: Any) -> str:
        return str(self.root / repo_id)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        call("hrm_agent.train", [*TINY_RUN, f"hydra.run.dir={folder}"], monkeypatch)
    return folder


@pytest.fixture
def _left_as_it_was() -> Iterator[None]:
    """What pages register is gone after the test."""
    assert len(registry)  # looks for agents, once
    import_source("MiniGrid-Empty-5x5-v0")  # a module registers once: taken back, its environments would be gone
    mappings: list[dict[str, Any]] = [CORES.registered, gymnasium.registry, registry.registered]
    before, modules = [dict(mapping) for mapping in mappings], set(sys.modules)
    yield
    for mapping, was in zip(mappings, before, strict=True):
        mapping.clear()
        mapping.update(was)
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("my_project", "my_package"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.usefixtures("_left_as_it_was")
@pytest.mark.thorough
@pytest.mark.parametrize("page", [p for p in PAGES if blocks_of(p.read_text())], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks(page: Path, tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hub, "_library", lambda: FolderHub(tmp_path / "hub"))
    learn = hrm_agent.learn
    monkeypatch.setattr(hrm_agent, "learn", lambda env, **given: learn(env, **{**given, **A_LITTLE}), raising=False)
    for folder in ("RUN", "runs/..."):  # the names that pages have for some run
        shutil.copytree(trained_run, folder)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page.read_text()):
        marked, _, what = block.mark.partition(" ")
        if block.mark.startswith("setup run at "):
            shutil.copytree(trained_run, block.mark.removeprefix("setup run at "))
        if marked == "file":
            Path(what).parent.mkdir(parents=True, exist_ok=True)
            Path(what).write_text(block.code)
            importlib.invalidate_caches()
        elif block.language == "python":
            do_python(block, page, names)
        elif block.language == "bash":
            do_bash(block, monkeypatch)
        elif block.language == "toml":
            assert tomllib.loads(block.code)
            if marked == "install":
                install(what, block.code, tmp_path)
        elif block.language == "text":
            assert block.code.strip()  # what a command prints
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), dict)
        else:
            pytest.fail(f"{page}:{block.line}: nothing runs or checks a block of {block.language or 'no language'}")


@pytest.mark.thorough
@pytest.mark.usefixtures("_left_as_it_was")
@pytest.mark.parametrize("notebook", sorted(DOCS.rglob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their cells run in order, as they are, and hold no results that would grow old."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
    assert list(tmp_path.iterdir())  # runs went to the temporary folder


def test_every_fence_is_seen() -> None:
    """A block that `BLOCK` overlooks, because it is indented for instance, would pass unseen."""
    for page in PAGES:
        assert len(re.findall(r"^\s*```", page.read_text(), re.MULTILINE)) == 2 * len(blocks_of(page.read_text())), page


def test_a_wrong_line_is_noticed(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [
        "python -m hrm_agent.train core=trmm",
        "python -m hrm_agent.evaluate run=RUN episode=3",
        "python -m hrm_agent.train env.options.dors=3",
        "python -m hrm_agent.baselines baseline=sb3_ppo out=runs/x",
        "python -m hrm_agent.nothing",
        "python -m hrm_agent.train resume=RUN seed=1",
        "python -m hrm_agent.train init_from=SUPERVISED_RUN init_parts=hands",
        "python -m hrm_agent.supervise resume=RUN seed=1",
        "python -m hrm_agent.supervise task=mazes",
        "python -m hrm_agent.solve model=RUN puzzle=3",
        "rm -rf runs",
    ]
    for line in wrong:
        with pytest.raises((ValueError, AssertionError, OSError, ImportError)):
            do_bash(Block("", "bash", line, 0), monkeypatch)


# The site


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_every_environment_has_a_page_of_gymnasiums_form_and_a_picture(hooks: ModuleType) -> None:
    ours = {name for name, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("hrm_envs.")}
    assert set(hooks.environment_ids()) == {name for name in ours if not name.startswith("MiniHack")}
    for name in hooks.environment_ids():
        page = hooks.environment_page(name)
        for title in (
            "Description", "Action Space", "Observation Space", "Starting State", "Rewards", "Episode End", "Arguments",
            "Version History",
        ):  # fmt: skip
            assert f"\n## {title}\n" in page
        assert "| `max_episode_steps` |" in page
        env = gymnasium.make(name, render_mode="rgb_array")
        env.reset(seed=0)
        with Image.open(DOCS / "images" / f"{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), env.render())


@pytest.mark.parametrize(("title", "config"), [("The Towers of Hanoi", HanoiConfig), ("Chess endgames", EndgameConfig)])
def test_the_options_on_the_environments_page_are_those_there_are(title: str, config: type) -> None:
    page = (DOCS / "environments" / "index.md").read_text()
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", section, re.MULTILINE))
    assert shown == {each.name: f"{each.default:g}" if isinstance(each.default, float) else str(each.default)
                     for each in fields(config)}  # fmt: skip


@pytest.mark.thorough
def test_the_site_builds_without_a_warning(tmp_path: Path, forks: Forks) -> None:
    """Links and anchors are checked, those to other hosts are not asked."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = ["-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]  # --quiet would hide warnings
    (built,) = forks.run([command], [{"NO_MKDOCS_2_WARNING": "1"}], ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    for page in (
        "index",
        "concepts/index",
        "environments/PaperMaze-v0/index",
        "experiments/main_job/index",
        "api/index",
    ):
        assert (tmp_path / "site" / f"{page}.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/quick_start.md"])
def test_the_first_command_has_one_headline_which_is_that_of_its_records(page: str) -> None:
    text = (ROOT / page).read_text()
    paragraph = next(line for line in text.splitlines() if line.startswith("trains the default agent"))
    runs = json.loads((ROOT / "experiments/main_job/results.json").read_text())
    seeds = [run for run in runs if run["agent"] == "DynamicMaze-v0"]
    drawn = [run["sampled"] for run in seeds]
    means = [f"{np.mean([play['success'] for play in plays]):.3f}" for plays in (seeds, drawn)]
    assert f"{means[0]} greedy and {means[1]} sampled" in paragraph
    assert re.findall(r"0\.\d+", paragraph) == means
    assert "%" not in paragraph
    timed = json.loads((ROOT / "experiments/speed/default_run.json").read_text())["whole_commands"][0]
    training = f"{np.median([run['seconds'] for run in seeds]):.0f} s of training"
    assert f"{timed['seconds']:.0f} s, {timed['training_seconds']:.0f} of them training" in paragraph
    assert training in paragraph
    assert not re.search(r"\b(a|one) minute\b|\d+ (s|seconds)\b", text.split(paragraph)[0])  # true of one processor


def test_links_of_the_experiments_pages(hooks: ModuleType) -> None:
    """What is in the repository but not in the site loses its link, what is in neither keeps it and so is reported."""
    known = SimpleNamespace(get_file_from_path=lambda path: path == "experiments/braid/curves.png" or None)
    page = "experiments/braid/README.md"
    for target, expected in (
        ("curves.png", "[x](curves.png)"),
        ("results.json", "x"),
        ("../../hrm_agent/agents/agent.py", "x"),
        ("missing.json", "[x](missing.json)"),
        ("https://example.org", "[x](https://example.org)"),
        ("#claim", "[x](#claim)"),
    ):
        assert hooks.LINK.sub(lambda match: hooks._inside(match, page, known), f"[x]({target})") == expected


def test_links_lead_somewhere_in_a_clone() -> None:
    """Pages are read on the repository's own site too, where those that the site generates do not exist."""
    found = 0
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("experiments/**/*.md"))):
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
                found += 1
    assert found > 20


def test_environments_have_pages_in_the_site(hooks: ModuleType) -> None:
    for uri, text, expected in (
        ("environments/index.md", "[`CueMaze-v0`](../../envs/hrm_envs/cue.py)", "[`CueMaze-v0`](CueMaze-v0.md)"),
        ("minihack.md", "[`PaperMaze-v0`](../envs/hrm_envs/x.py)", "[`PaperMaze-v0`](environments/PaperMaze-v0.md)"),
    ):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
        assert hooks.on_page_markdown(text, page=page, config=None, files=None) == expected
