"""Agents of Stable-Baselines3 beside ours: train, measure and record what has no record yet, then redraw the page.

    python -m experiments.baselines.run --jobs 2
    python -m experiments.baselines.run --list | --only trm_fog 1 | --draw-only

`study.yaml` says which agents; each is an arm with fog off (`trm`) and one with fog on (`trm_fog`). Agents of
Stable-Baselines3 have the settings that the search found (`tuned.json`, by `tune.py`), ours are as shipped. Every run
has one thread, and seconds of training are processor time, so that other work on the machine does not count. The last
agent of a run is measured, greedily, on 1,000 test levels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import Record
from experiments.engine.runner import SKILL, Job, refuse
from experiments.engine.runs import (
    agent_info,
    cost_of,
    first_above,
    metrics,
    run_python,
    sampled_curve,
    thinned,
    validation_curve,
)

HERE = Path(__file__).resolve().parent
UNLIMITED = 10**9  # frames: the clock ends every run
VALIDATE_EVERY = 500_000  # frames, for agents of Stable-Baselines3: they see millions
NETWORKS = {"sb3_recurrent_ppo": "lstm", "sb3_ppo_cnn": "cnn", "sb3_ppo_mlp": "mlp", "sb3_dqn": "mlp"}


class Study(runner.Study):
    """Every agent of the comparison, `NAME` with fog off and `NAME_fog` with fog on."""

    key = ("arm", "seed")
    order = ("fog", "agent", "seed")

    def arms(self) -> dict[str, Any]:
        """All arms, in the order in which their runs are worth having."""
        path = self.folder / "tuned.json"
        if not path.exists():
            refuse(f"{path.name}: not there, expected the settings that the search found; run tune.py first")
        tuned = json.loads(path.read_text())
        theirs, agents = self.settings["sb3"], {}
        if lacking := [name for name in theirs if name not in tuned]:
            refuse(f"{path.name}: has no settings of {', '.join(lacking)}; run tune.py for them")
        for name in theirs:
            agents[name] = [f"settings.{k}={v}" for k, v in sorted(tuned[name]["settings"].items())]
        agents |= self.settings["ours"]
        searched = self.settings["search"]
        if winner := tuned.get(searched, {}).get("settings"):
            agents[f"{searched}_tuned"] = [*agents[searched], *(f"{k}={v}" for k, v in sorted(winner.items()))]
        return {
            name + "_fog" * fog: {"agent": name, "fog": fog, "overrides": overrides}
            for name, overrides in agents.items()
            for fog in (False, True)
        }

    def is_trained(self, place: Path) -> bool:
        # The command of Stable-Baselines3's agents measures them too; what it took is noted last.
        return super().is_trained(place) or all((place / name).exists() for name in ("eval.json", "study.json"))

    def module_of(self, job: Job) -> str:
        return "hrm_agent.baselines" if self.arm(job.arm)["agent"] in NETWORKS else self.module

    def overrides(self, job: Job) -> list[str]:
        arm, settings = self.arm(job.arm), self.settings
        agent, view = arm["agent"], [f"view={settings['view']}"] * arm["fog"]
        if agent not in NETWORKS:
            return [*super().overrides(job), *(f"env.options.{option}" for option in view)]
        seconds = settings["seconds_of"].get(agent, settings["seconds"])
        limits = [f"total_steps={UNLIMITED}", f"max_seconds={seconds:g}", "clock=cpu", f"seed={job.seed}"]
        world = [f"env={settings['env']}", *(f"env_options.{option}" for option in view)]
        return [f"baseline={agent}", *world, *arm["overrides"], *limits, f"eval_every={VALIDATE_EVERY}"]

    def measure(self, job: Job) -> list[Record]:
        arm, place = self.arm(job.arm), self.trained(job)
        if not (place / "eval.json").exists():
            run_python(place, ["-m", "hrm_agent.evaluate", f"run={place}", "which=last", f"out={place / 'eval.json'}"])
        report = json.loads((place / "eval.json").read_text())
        lines = metrics(place)
        curve, validation = sampled_curve(lines), validation_curve(lines)
        frames_to_90, seconds_to_90 = first_above(curve)
        record = {
            "agent": arm["agent"],
            "arm": job.arm,
            "fog": arm["fog"],
            "view": self.settings["view"] if arm["fog"] else None,
            "seed": job.seed,
            "env": report["env"],
            "env_options": report["env_options"],
            **described(arm["agent"], place, report),
            **{name: report[name] for name in SKILL if name in report},
            "frames": report["frames"],
            "seconds": report["seconds"],
            "steps_per_second": round(report["frames"] / report["seconds"], 1),
            "frames_to_90": frames_to_90,
            "seconds_to_90": seconds_to_90,
            "sampled_success": curve[-1][2] if curve else None,
            "validation_success": validation[-1][2] if validation else None,
            "curve": thinned(curve),
            "validation_curve": thinned(validation),
            **cost_of(place, commit=self.settings["commit_of_earlier_runs"]),
        }
        return [record, *self.reference_records(report, "_fog" * arm["fog"], fog=arm["fog"])]


def described(agent: str, place: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What was trained, as the run itself says."""
    if agent not in NETWORKS:
        info = agent_info(place)
        same = {name: info[name] for name in ("algo", "core", "carry", "segments", "time_gradient")}
        return {**same, "clock": info.get("clock", "wall")}
    settings, network = report["settings"], NETWORKS[agent]
    if network != "cnn" and settings.get("channels"):
        network = f"cnn+{network}"
    return {
        "algo": "dqn" if agent == "sb3_dqn" else "ppo",
        "core": network,
        "carry": "lstm" if "lstm" in network else None,
        "segments": None,
        "time_gradient": "bptt" if "lstm" in network else None,
        "clock": report["clock"],
        "settings": settings,
    }


if __name__ == "__main__":
    runner.main(Study, HERE)
