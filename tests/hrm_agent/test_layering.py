"""Arrows point down only, and nothing is ever unpickled."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENT, ENVS = ROOT / "hrm_agent", ROOT / "envs" / "hrm_envs"

# Modules (paths below the root) -> what they may not import.
FORBIDDEN = {
    "envs/hrm_envs": ("torch", "hrm_agent", "hydra", "omegaconf"),
    "hrm_agent/algos": (
        "hrm_agent.trainer",
        "hrm_agent.collector",
        "hrm_agent.config",
        "hrm_agent.cli",
        "hrm_agent.environments",
        "hrm_agent.evaluation",
        "hrm_envs",
        "gymnasium",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/evaluation": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_agent.collector", "omegaconf", "hydra"),
    "hrm_agent/wrappers": ("torch", "hrm_envs", "hydra", "omegaconf"),
    "hrm_agent/policy.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/replay.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/learners.py": ("hrm_agent.trainer", "hrm_agent.config", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/collector.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/run_loop.py": (
        "hrm_agent.algos",
        "hrm_agent.trainer",
        "hrm_agent.supervised",
        "hrm_agent.config",
        "hrm_agent.cli",
        "hrm_agent.runs",
        "gymnasium",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/runs.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_agent.supervised", "hrm_envs"),
    "hrm_agent/trainer.py": (
        "hrm_agent.config",
        "hrm_agent.cli",
        "hrm_agent.runs",
        "hrm_agent.train",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/data_parallel.py": (
        "hrm_agent.algos",
        "hrm_agent.collector",
        "hrm_agent.policy",
        "hrm_agent.runs",
        "hrm_agent.trainer",
        "gymnasium",
        "omegaconf",
        "hydra",
    ),
    "hrm_agent/baselines": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_agent.policy", "omegaconf", "hydra"),
    "hrm_agent/card.py": ("hrm_agent", "torch", "gymnasium"),
    "hrm_agent/registration.py": ("hrm_agent.trainer", "hrm_agent.evaluation", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/cuda": ("hrm_agent.trainer", "hrm_agent.config", "hrm_agent.cli", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/hub.py": ("hrm_agent.trainer", "hrm_agent.evaluation", "hrm_envs", "omegaconf", "hydra"),
    "hrm_agent/agent.py": ("hrm_agent.algos", "hrm_agent.trainer", "hrm_envs", "omegaconf", "hydra"),
}
COMMANDS = {
    "train",
    "supervise",
    "solve",
    "evaluate",
    "watch",
    "shifts",
    "parity",
    "export",
    "agents.__main__",
    "sweep_table",
    "bench",
}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(*below: str) -> list[Path]:
    found = [
        p for name in below for p in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
    ]
    assert found
    return found


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, wherever in the file: modules, and names taken from them."""
    assert path.is_relative_to(ROOT)
    package = path.relative_to(ENVS.parent if path.is_relative_to(ENVS) else ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("where", FORBIDDEN)
def test_nothing_imports_what_stands_above_it(where: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(where)
        for name in imports(path)
        if any(below(name, forbidden) for forbidden in FORBIDDEN[where])
    ]
    assert wrong == []


def test_cores_know_nothing_of_agents() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("hrm_agent/cores")
        for name in imports(path)
        if below(name, "gymnasium")
        or (below(name, "hrm_agent") and not below(name, "hrm_agent.cores") and not below(name, "hrm_agent.kernels"))
        if name != "hrm_agent"
    ]
    assert wrong == []


def test_kernels_know_nothing_of_cores() -> None:
    for path in sources("hrm_agent/kernels"):
        found = {name for name in imports(path) if below(name, "hrm_agent") and not below(name, "hrm_agent.kernels")}
        assert found <= {"hrm_agent"}, path


def test_stable_baselines3_is_needed_by_its_own_modules_alone() -> None:
    for path in sources("hrm_agent"):
        if path.parent != AGENT / "baselines" and path != AGENT / "sb3.py":
            assert not {n for n in imports(path) if n.split(".")[0] in ("stable_baselines3", "sb3_contrib")}, path


def test_nothing_but_a_command_imports_a_command() -> None:
    """`train` ends with an evaluation, which is the one exception."""
    for path in sources("hrm_agent"):
        found = {name for name in imports(path) if name in {f"hrm_agent.{c}" for c in COMMANDS}}
        assert found <= ({"hrm_agent.evaluate"} if path == AGENT / "train.py" else set()), path


def test_nothing_leans_on_benchmarks() -> None:
    for path in sources("hrm_agent"):
        if path.parent != AGENT / "benchmarks" and path != AGENT / "bench.py":
            assert not {name for name in imports(path) if below(name, "hrm_agent.benchmarks")}, path


def test_the_checker_sees_every_way_to_import(tmp_path: Path) -> None:
    module = AGENT / "cores" / "base.py"
    assert "torch" in imports(module)
    assert {"hrm_agent.cores.base", "hrm_agent.cores.base.Core"} <= imports(AGENT / "cores" / "trm.py")


def is_torch_load(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.serialization.load")


def test_nothing_is_unpickled() -> None:
    """But for the authors' weights, by the reader that builds tensors and no other object."""
    for path in sources("hrm_agent", "envs/hrm_envs", "tests", "experiments"):
        assert not {name for name in imports(path) if name.split(".")[0] in UNPICKLERS}, path
        assert not {name for name in imports(path) if name in ("torch.load", "torch.serialization.load")}, path
        tree = ast.parse(path.read_text())
        loads = [node for node in ast.walk(tree) if is_torch_load(node)]
        if path == AGENT / "supervised" / "published.py":
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_torch_load(node.func)]
            assert len(loads) == len(calls) == 1
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
            assert options == {"map_location": "'cpu'", "weights_only": "True", "mmap": "True"}
        else:
            assert not loads, f"{path}:{loads[0].lineno}"
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), f"{path}:{node.value.lineno}"
                assert node.value.value is False, f"{path}:{node.value.lineno}"


def test_files_and_functions_stay_short() -> None:
    for path in sources("hrm_agent", "envs/hrm_envs"):
        text = path.read_text()
        assert len(text.splitlines()) <= 490, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 80, f"{path}:{node.name}"
