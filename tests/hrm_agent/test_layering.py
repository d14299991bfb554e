"""Arrows point down only, and nothing is ever unpickled."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENT, ENVS = ROOT / "hrm_agent", ROOT / "envs" / "hrm_envs"

LAYERS = (
    "commands", "benchmarks", "baselines", "launch", "playground", "supervised", "training", "evaluation", "agents",
    "algos", "experience", "policies", "recurrence", "cores", "environments", "parallel", "kernels", "tensors", "files",
    "names",
)  # fmt: skip
"""Folders of `hrm_agent`, from what users type down to what knows nothing of the rest; imports go down only.

`commands` are the modules at the root, and the `__main__` of a folder."""

ALIENS = {
    "hydra": ("commands", "launch"),
    "starlette": ("playground",),
    "uvicorn": ("playground",),
    "omegaconf": ("commands", "launch", "supervised"),
    "stable_baselines3": ("commands", "baselines"),
    "sb3_contrib": ("baselines",),
    "hrm_envs": (
        "commands", "launch", "playground", "evaluation", "environments", "supervised", "benchmarks", "baselines",
        "cores",
    ),
    "gymnasium": tuple(
        name
        for name in LAYERS
        if name not in ("cores", "recurrence", "algos", "parallel", "kernels", "tensors", "files", "names")
    ),
}  # fmt: skip
"""Packages that some layers alone may import."""
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(*below: str) -> list[Path]:
    found = [
        p for name in below for p in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
    ]
    assert found
    return found


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, wherever in the file: modules, and names taken from them."""
    assert path.is_relative_to(ROOT)
    package = path.relative_to(ENVS.parent if path.is_relative_to(ENVS) else ROOT).parent.parts
    names: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(name: str) -> str:
    """Of a dotted name below `hrm_agent`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS and parts[-1] != "__main__" else "commands"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_folder_has_its_place() -> None:
    folders = {p.name for p in AGENT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders == set(LAYERS) - {"commands"}


def test_imports_go_down_only() -> None:
    """`hrm_agent` itself (the version) may be asked for by all."""
    modules = {module_name(path) for path in sources("hrm_agent")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("hrm_agent")
        if path != AGENT / "__init__.py"
        for name in imports(path)
        if name in modules and name != "hrm_agent"
        if LAYERS.index(layer_of(name)) < LAYERS.index(layer_of(module_name(path)))
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ALIENS)
def test_who_may_import(package: str) -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources("hrm_agent")
        if path != AGENT / "__init__.py"
        if any(below(name, package) for name in imports(path)) and layer_of(module_name(path)) not in ALIENS[package]
    ]
    assert wrong == []


def test_environments_stand_alone() -> None:
    for path in sources("envs/hrm_envs"):
        known = ("torch", "hrm_agent", "hydra", "omegaconf")
        assert not {name for name in imports(path) if any(below(name, other) for other in known)}, path


def test_nothing_but_a_command_imports_a_command() -> None:
    """`train` ends with an evaluation, and `hrm_agent.learn` is in it; studies check, train and evaluate."""
    commands = {module_name(p) for p in sources("hrm_agent") if layer_of(module_name(p)) == "commands"} - {"hrm_agent"}
    for path in sources("hrm_agent"):
        found = imports(path) & commands
        allowed = {
            AGENT / "train.py": {"hrm_agent.evaluate"},
            AGENT / "study.py": {"hrm_agent.evaluate", "hrm_agent.train"},
            AGENT / "search.py": {"hrm_agent.train"},
            AGENT / "__init__.py": {"hrm_agent.train"},
        }
        assert found <= allowed.get(path, set()), path


def test_the_checker_sees_every_way_to_import(tmp_path: Path) -> None:
    module = AGENT / "cores" / "base.py"
    assert "torch" in imports(module)
    assert {"hrm_agent.cores.two_latents", "hrm_agent.cores.two_latents.TwoLatentCore"} <= imports(
        AGENT / "cores" / "trm.py"
    )


def may_unpickle(path: Path) -> bool:
    """Whether the text holds a word without which there is nothing to find; most files need not be parsed then."""
    words = set(re.findall(r"\w+", path.read_text()))
    return bool(words & {*UNPICKLERS, "allow_pickle"}) or {"torch", "load"} <= words


def is_torch_load(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "load"
        and ast.unparse(node) in ("torch.load", "torch.serialization.load")
    )


def test_nothing_is_unpickled() -> None:
    """But for the authors' weights, by the reader that builds tensors and no other object, and for this user's cache.

    numba's machine code is pickled; `hrm_envs/cache.py` reads it only from files that no other user can have written.
    """
    own_cache = (ROOT / "envs" / "hrm_envs" / "cache.py", ROOT / "tests" / "hrm_envs" / "test_cache.py")
    searched = [p for p in sources("hrm_agent", "envs/hrm_envs", "tests", "experiments") if may_unpickle(p)]
    assert {AGENT / "supervised" / "published.py", *own_cache} <= set(searched)
    for path in searched:
        assert path in own_cache or not {n for n in imports(path) if n.split(".")[0] in UNPICKLERS}, path
        assert not {name for name in imports(path) if name in ("torch.load", "torch.serialization.load")}, path
        loads = [node for node in nodes_of(path) if is_torch_load(node)]
        if path == AGENT / "supervised" / "published.py":
            calls = [node for node in nodes_of(path) if isinstance(node, ast.Call) and is_torch_load(node.func)]
            assert len(loads) == len(calls) == 1
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
            assert options == {"map_location": "'cpu'", "weights_only": "True", "mmap": "True"}
        else:
            assert not loads, f"{path}:{loads[0].lineno}"
        for node in nodes_of(path):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), f"{path}:{node.value.lineno}"
                assert node.value.value is False, f"{path}:{node.value.lineno}"


def test_files_and_functions_stay_short() -> None:
    for path in sources("hrm_agent", "envs/hrm_envs"):
        assert len(path.read_text().splitlines()) <= 490, path
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 80, f"{path}:{node.name}"
