"""Train, evaluate and pack the agents in the wheel: `python -m experiments.shipped_agents.build [ID ...]`.

`agents.yaml` says which agents there are and how each is trained. An agent whose run is already in `runs/shipped/ID`
(or is given by `--runs ID=FOLDER`) is not trained again, nor is any with `--measure`, which takes those in the package.
Each is evaluated on 1,000 test levels, greedy and sampled, and written with its card to `hrm_agent/agents/ID`;
`results.json` gets its record, with the outcome of every level, and `README.md` its line.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import hrm_agent
from experiments.engine.machine import commit_of_code
from experiments.engine.pages import draw
from experiments.engine.records import ROOT, put
from hrm_agent.agents.agent import Agent
from hrm_agent.agents.card import evaluation_facts
from hrm_agent.agents.description import add_facts
from hrm_agent.evaluate import evaluate
from hrm_agent.probe import probe
from hrm_agent.train import run_facts
from hrm_envs.registration import MAZES

HERE = Path(__file__).resolve().parent
AGENTS = ROOT / "hrm_agent" / "agents"
EPISODES = 1000


def main() -> None:
    overrides = yaml.safe_load((HERE / "agents.yaml").read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="agents to build; none: all of agents.yaml")
    parser.add_argument("--runs", nargs="*", default=[], metavar="ID=FOLDER", help="finished runs to take")
    parser.add_argument("--measure", action="store_true", help="measure the agents in the package again")
    given = parser.parse_args()
    commit = commit_of_code()  # before anything is written to the package
    runs = dict(pair.split("=", 1) for pair in given.runs)
    unknown = [name for name in (*given.ids, *runs) if name not in overrides]
    if unknown:
        parser.error(f"{unknown[0]}: not in agents.yaml; known: {', '.join(overrides)}")
    for name in given.ids or runs or overrides:
        if not given.measure:
            pack(name, Path(runs[name]) if name in runs else trained_run(name, overrides[name]))
        put(HERE / "results.json", [{**measure(name), "commit": commit}], ["agent"])
    draw(HERE)


def trained_run(name: str, overrides: list[str]) -> Path:
    """The folder of the agent's run, trained now where it is not there; an unfinished run is resumed."""
    folder = ROOT / "runs" / "shipped" / name
    if not (folder / "agents" / "last").is_dir():
        how = [f"resume={folder}"] if (folder / "run.json").is_file() else [*overrides, f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "hrm_agent.train", *how], cwd=ROOT, check=True)
    return folder


def pack(name: str, run: Path) -> None:
    """Write the run's best agent to the package, with a probe of its latents where it plays mazes."""
    agent = Agent.load(run)
    agent.info = {**agent.info, **run_facts(run), "id": name, "license": "mit"}
    agent.save(AGENTS / name)
    if agent.info["env"] in MAZES:
        probe(str(AGENTS / name))


def measure(name: str) -> dict[str, Any]:
    """Evaluate an agent as it lies in the package and put that into its description and card; returns its record."""
    folder = AGENTS / name
    report = evaluate(run=str(folder), episodes=EPISODES)
    add_facts(folder, evaluation=evaluation_facts(report))
    info = Agent.load(folder).info
    taken = ("env", "env_options", "core", "carry", "segments", "frames", "seconds", "parameters")
    measured = ("split", "success", "success_ci95", "spl", "return", "levels")
    return {
        "agent": name,
        "algo": info["algo"],
        "seed": info["seed"],
        **{key: report[key] for key in (*taken, *measured)},
        **{key: success_of(report, key) for key in ("random", "bfs_replanner", "clairvoyant")},
        "sampled": {key: report["sampled"][key] for key in ("success", "success_ci95", "spl", "levels")},
        "command": info["command"],
        "machine": info["machine"],
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "hrm_agent_version": hrm_agent.__version__,
    }


def success_of(report: dict[str, Any], baseline: str) -> float | None:
    return report[baseline] and report[baseline]["success"]


if __name__ == "__main__":
    main()
