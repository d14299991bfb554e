"""The first updates of the paper's run as a record, and its table.

    python -m hrm_agent.train +experiment=hrm_agent_maze total_steps=6_656 test_episodes=0 eval_episodes=1 shards=1 \
        hydra.run.dir=RUN
    python experiments/paper_mode/record.py RUN      # writes log.json beside this file, and the table of README.md

`--draw-only` redraws the table from log.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from study import commit_of_code, fill, table

HERE = Path(__file__).resolve().parent
SEGMENTS, FRAMES = 8, 256  # of an iteration: updates, and new frames
KEPT = ("loss/loss", "loss/q_mean", "loss/target_q", "loss/td_error", "loss/gradient_norm", "loss/learning_rate")
# Measured with the authors' own code on two cores of such a machine (batch 256, 8 segments): float32, bfloat16.
ORIGINAL = {"decisions a second": (10.8, 23.4), "seconds a training segment": (8.7, 4.4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--commit", default=None, help="of the code that made the run; else the checkout's")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    if not options.draw_only:
        (HERE / "log.json").write_text(json.dumps(record(options.run, options.commit or commit_of_code()), indent=1))
    page = HERE / "README.md"
    page.write_text(filled(page.read_text()))


def record(run: Path, commit: str) -> dict[str, Any]:
    """What the run logged at every iteration, which is 8 updates of 256 transitions and 256 new frames."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss/loss" in line]
    rows = [
        {
            "updates": SEGMENTS * (n + 1),
            "frames": line["frames"],
            **{name.removeprefix("loss/"): line[name] for name in KEPT},
            "collect_seconds": round(line["time/collect_seconds"], 2),
            "update_seconds": round(line["time/update_seconds"], 2),
        }
        for n, line in enumerate(lines)
    ]
    info = json.loads((run / "agents" / "last" / "agent.json").read_text())["info"]
    return {
        "command": json.loads((run / "run.json").read_text())["command"].split(" hydra.run.dir")[0],
        "machine": "one core of a 2-core x86-64 server CPU, the other busy; no GPU",
        "seed": info["seed"],
        "parameters": info["parameters"],
        "commit": commit,
        "iterations": rows,
    }


def filled(text: str) -> str:
    """The page with its table from log.json."""
    log = json.loads((HERE / "log.json").read_text())
    rows = log["iterations"]
    collect = float(np.median([r["collect_seconds"] for r in rows]))
    update = float(np.median([r["update_seconds"] for r in rows]))
    # An update of a batch holds its 8 segments and the target, which is 8 segments forward of as many decisions as
    # are collected in an iteration.
    ours = {"decisions a second": FRAMES / collect, "seconds a training segment": (update - collect) / SEGMENTS}
    lines = [
        {
            "": name,
            "ours, one core, float32": f"{ours[name]:.1f}",
            "authors' code, two cores, float32": f"{ORIGINAL[name][0]:.1f}",
            "authors' code, two cores, bfloat16": f"{ORIGINAL[name][1]:.1f}",
        }
        for name in ORIGINAL
    ]
    text = fill(text, "paper_mode", table(lines))
    shown = [r for r in rows if r["updates"] in (8, 40, 80, 120, 160, 200)]
    columns = ("updates", "frames", "loss", "q_mean", "target_q", "td_error", "gradient_norm")
    found = [{c: f"{r[c]:,}" if isinstance(r[c], int) else f"{r[c]:.4f}" for c in columns} for r in shown]
    return fill(text, "updates", table(found))


if __name__ == "__main__":
    main()
