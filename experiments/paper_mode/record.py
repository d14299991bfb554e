"""The first updates of the paper's run as a record, and its table.

    python -m hrm_agent.train +experiment=hrm_agent_maze total_steps=6_656 test_episodes=0 eval_episodes=1 shards=1 \
        hydra.run.dir=RUN
    python -m experiments.paper_mode.record RUN      # writes log.json beside this file, and the tables of README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.engine.machine import commit_of_code
from experiments.engine.pages import draw
from experiments.engine.runs import agent_info, metrics
from experiments.paper_mode.draw import SEGMENTS

HERE = Path(__file__).resolve().parent
KEPT = ("loss/loss", "loss/q_mean", "loss/target_q", "loss/td_error", "loss/gradient_norm", "loss/learning_rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--commit", default=None, help="of the code that made the run; else the checkout's")
    options = parser.parse_args()
    (HERE / "log.json").write_text(json.dumps(record(options.run, options.commit or commit_of_code()), indent=1))
    draw(HERE)


def record(run: Path, commit: str) -> dict[str, Any]:
    """What the run logged at every iteration, which is 8 updates of 256 transitions and 256 new frames."""
    lines = [line for line in metrics(run) if "loss/loss" in line]
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
    info = agent_info(run)
    return {
        "command": json.loads((run / "run.json").read_text())["command"].split(" hydra.run.dir")[0],
        "machine": "one core of a 2-core x86-64 server CPU, the other busy; no GPU",
        "seed": info["seed"],
        "parameters": info["parameters"],
        "commit": commit,
        "iterations": rows,
    }


if __name__ == "__main__":
    main()
