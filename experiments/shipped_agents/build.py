"""Train, evaluate and pack the agents in the wheel: `python experiments/shipped_agents/build.py [ID ...]`.

`agents.yaml` says which agents there are and how each is trained. An agent whose run is already in `runs/shipped/ID`
(or is given by `--runs ID=FOLDER`) is not trained again. Each is evaluated on 1,000 test levels, and written with its
card to `hrm_agent/agents/ID`; `results.json` gets its record, with the outcome of every level, and `README.md` its
line. `--tables` only draws the table anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import hrm_agent
from hrm_agent.agents.agent import Agent
from hrm_agent.agents.card import evaluation_facts
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.report import to_json
from hrm_agent.tensors.files import write_atomically
from hrm_agent.train import run_facts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
AGENTS = ROOT / "hrm_agent" / "agents"
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
EPISODES = 1000
BEGIN, END = "<!-- table shipped_agents -->", "<!-- /table -->"


def main() -> None:
    overrides = yaml.safe_load((HERE / "agents.yaml").read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="agents to build; none: all of agents.yaml")
    parser.add_argument("--runs", nargs="*", default=[], metavar="ID=FOLDER", help="finished runs to take")
    parser.add_argument("--tables", action="store_true", help="only draw the table anew")
    given = parser.parse_args()
    runs = dict(pair.split("=", 1) for pair in given.runs)
    unknown = [name for name in (*given.ids, *runs) if name not in overrides]
    if unknown:
        parser.error(f"{unknown[0]}: not in agents.yaml; known: {', '.join(overrides)}")
    if not given.tables:
        for name in given.ids or runs or overrides:
            run = Path(runs[name]) if name in runs else trained_run(name, overrides[name])
            add_record(pack(name, run))
    write_atomically(PAGE, filled(PAGE.read_text(), load_records()).encode())


def trained_run(name: str, overrides: list[str]) -> Path:
    """The folder of the agent's run, trained now where it is not there; an unfinished run goes on."""
    folder = ROOT / "runs" / "shipped" / name
    if not (folder / "agents" / "last").is_dir():
        how = [f"resume={folder}"] if (folder / "run.json").is_file() else [*overrides, f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "hrm_agent.train", *how], cwd=ROOT, check=True)
    return folder


def pack(name: str, run: Path) -> dict[str, Any]:
    """Write the run's best agent to the package, evaluated as it lies there; returns its record."""
    agent = Agent.load(run)
    folder = AGENTS / name
    facts = {**run_facts(run), "id": name, "license": "mit"}
    agent.info = {**agent.info, **facts}
    agent.save(folder)
    report = evaluate(run=str(folder), episodes=EPISODES)
    agent.info["evaluation"] = evaluation_facts(report)
    agent.save(folder)
    taken = ("env", "env_options", "core", "carry", "segments", "frames", "seconds", "parameters")
    measured = ("success", "success_ci95", "spl", "return", "regret_after_material_change", "levels")
    return {
        "agent": name,
        "algo": agent.info["algo"],
        "seed": agent.info["seed"],
        **{key: report[key] for key in (*taken, *measured)},
        **{key: success_of(report, key) for key in ("random", "bfs_replanner", "clairvoyant")},
        "command": facts["command"],
        "machine": facts["machine"],
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "hrm_agent_version": hrm_agent.__version__,
        "commit": commit(),
    }


def success_of(report: dict[str, Any], baseline: str) -> float | None:
    return report[baseline] and report[baseline]["success"]


def commit() -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


def load_records() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else []


def add_record(record: dict[str, Any]) -> None:
    others = [r for r in load_records() if r["agent"] != record["agent"]]
    write_atomically(RESULTS, to_json(sorted([*others, record], key=lambda r: r["agent"])))  # type: ignore[arg-type]


def filled(page: str, records: list[dict[str, Any]]) -> str:
    """The page with its table drawn from the records."""
    head, rest = page.split(BEGIN, 1)
    lines = [
        "| id | success, 1,000 test levels | SPL | random | BFS | clairvoyant | parameters | frames | size |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(record) for record in records),
    ]
    return f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END, 1)[1]}"


def _row(r: dict[str, Any]) -> str:
    low, high = r["success_ci95"]
    bounds = ["" if r[key] is None else f"{r[key]:.3f}" for key in ("random", "bfs_replanner", "clairvoyant")]
    spl = "" if r["spl"] is None else f"{r['spl']:.3f}"
    cells = [f"`{r['agent']}`", f"**{r['success']:.3f}** [{low:.3f}, {high:.3f}]", spl, *bounds]
    return "| " + " | ".join([*cells, f"{r['parameters']:,}", f"{r['frames']:,}", f"{r['bytes'] / 1000:.0f} kB"]) + " |"


if __name__ == "__main__":
    main()
