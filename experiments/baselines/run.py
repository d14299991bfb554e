"""Agents of Stable-Baselines3 and other cores beside ours: train, measure and record what has no record yet.

    python -m experiments.baselines.rates --jobs 2     # first: the learning rate of every agent
    python -m experiments.baselines.run --jobs 2
    python -m experiments.baselines.run --list | --only trm_fog 1000 | --draw-only

`study.yaml` says which agents; each is an arm with fog off (`trm`) and one with fog on (`trm_fog`), and some have more
time besides (`lstm_long`). All have the learning rate that `rates.py` found, agents of Stable-Baselines3 also the
better of two settings. Every run has one thread, and seconds of training are processor time; other work on the machine
still costs some of it, so leave the machine alone. The last agent of a run is measured, greedily and with sampled
actions, on 1,000 test levels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import Record, load, put
from experiments.engine.runner import SKILL, Job, outcomes_of, refuse, sampled_of
from experiments.engine.runs import (
    agent_info,
    cost_of,
    first_above,
    metrics,
    run_python,
    sampled_curve,
    thinned,
)
from experiments.engine.tables import UNTRAINED
from hrm_agent.parallel.threads import instruction_set

HERE = Path(__file__).resolve().parent
UNLIMITED = 10**9  # frames: the clock ends every run
NETWORKS = {
    "sb3_recurrent_ppo": "lstm",
    "sb3_ppo_cnn": "cnn",
    "sb3_ppo_mlp": "mlp",
    "sb3_ppo_core": "feedforward",
    "sb3_dqn": "mlp",
}


def flat(overrides: list[Any]) -> list[str]:
    """The overrides of an arm, those of lists within it included."""
    return [each for given in overrides for each in (given if isinstance(given, list) else [given])]


def best_trials(trials: list[Record], learnt: float = 0.0) -> dict[str, Record]:
    """Of every agent the trial whose actions, sampled at the end of training, succeed most; then greedy ones.

    Where none succeeds as often as `learnt`, nothing tells them apart: the middle rate of the first setting.
    """
    best = {}
    for agent in dict.fromkeys(trial["agent"] for trial in trials):
        own = [t for t in trials if t["agent"] == agent]
        first = sorted((t for t in own if t["overrides"] == own[0]["overrides"]), key=lambda t: t["rate"])
        most = max(own, key=lambda t: (t["sampled_success"] or 0.0, t["success"]))
        best[agent] = most if (most["sampled_success"] or 0.0) >= learnt else first[len(first) // 2]
    return best


class Study(runner.Study):
    """Every agent of the comparison, `NAME` with fog off and `NAME_fog` with fog on."""

    key = ("arm", "seed")
    order = ("fog", "agent", "seed")
    untrained = UNTRAINED

    def agents(self) -> dict[str, list[list[str]]]:
        """The settings of every agent that are tried, in the order in which their runs are worth having.

        They are overrides of its command, without the learning rate. Agents of this project have their own only.
        """
        return {name: [self.given(name, settings) for settings in tried] for name, tried in self.theirs.items()} | {
            name: [flat(overrides)] for name, overrides in self.settings["ours"].items()
        }

    @property
    def theirs(self) -> dict[str, list[Any]]:
        """Settings of the agents of Stable-Baselines3 that are tried."""
        return self.settings["sb3"]

    def given(self, name: str, settings: Any) -> list[str]:
        """One of the settings as overrides; `tuned` stands for what an earlier search found."""
        if settings == "tuned":
            path = self.folder / "tuned.json"
            if not path.exists():
                refuse(f"{path.name}: not there, expected the settings that the search found; run tune.py first")
            tuned = json.loads(path.read_text())
            if name not in tuned:
                refuse(f"{path.name}: has no settings of {name}; run tune.py for it")
            settings = {key: value for key, value in tuned[name]["settings"].items() if key != "learning_rate"}
        return [f"settings.{key}={value}" for key, value in sorted(settings.items())]

    def arms(self) -> dict[str, Any]:
        """All arms, fog off and on, with the settings and learning rates that were found."""
        best, agents = best_trials(load(self.folder / "rates.json"), self.settings["learnt"]), self.agents()
        if lacking := [name for name in agents if name not in best]:
            refuse(f"rates.json: has no learning rate of {', '.join(lacking)}; run rates.py for them")
        if other := [name for name, tried in agents.items() if best[name]["overrides"] not in tried]:
            refuse(f"rates.json: has other settings of {', '.join(other)}; remove its trials and run rates.py")
        longer, seconds = self.settings["longer"], self.settings["seconds"]
        arms: dict[str, Any] = {}
        for name in agents:
            overrides = [*best[name]["overrides"], f"{rate_of(name)}={best[name]['rate']:g}"]
            same = {"agent": name, "fog": False, "overrides": overrides, "seconds": seconds}
            arms |= {name: same, f"{name}_fog": {**same, "fog": True}}
            if name in longer["agents"]:
                arms[f"{name}_long"] = {**same, "seconds": longer["seconds"], "seeds": longer["seeds"]}
        return arms

    def is_trained(self, place: Path) -> bool:
        # The command of Stable-Baselines3's agents measures them too; what it took is noted last.
        return super().is_trained(place) or all((place / name).exists() for name in ("eval.json", "study.json"))

    def place(self, job: Job) -> Path:
        place = super().place(job)
        return place.with_name(f"fair_{place.name}")

    def module_of(self, job: Job) -> str:
        return "hrm_agent.baselines" if self.arm(job.arm)["agent"] in NETWORKS else self.module

    def overrides(self, job: Job) -> list[str]:
        arm, settings = self.arm(job.arm), self.settings
        agent, view = arm["agent"], [f"view={settings['view']}"] * arm["fog"]
        limits = [f"total_steps={UNLIMITED}", f"max_seconds={arm['seconds']:g}"]
        if agent not in NETWORKS:
            return [*super().overrides(job), *limits, *(f"env.options.{option}" for option in view)]
        world = [f"env={settings['env']}", *(f"env_options.{option}" for option in view)]
        own = [*arm["overrides"], *limits, "clock=cpu", f"seed={job.seed}", "eval_every=0"]
        return [f"baseline={agent}", *world, *own]

    def measure(self, job: Job) -> list[Record]:
        arm, place = self.arm(job.arm), self.trained(job)
        if not (place / "eval.json").exists():
            run_python(place, ["-m", "hrm_agent.evaluate", f"run={place}", "which=last", f"out={place / 'eval.json'}"])
        report = json.loads((place / "eval.json").read_text())
        lines = metrics(place)
        curve = sampled_curve(lines)
        frames_to_90, seconds_to_90 = first_above(curve)
        record = {
            "agent": arm["agent"],
            "arm": job.arm,
            "fog": arm["fog"],
            "budget_seconds": arm["seconds"],
            "view": self.settings["view"] if arm["fog"] else None,
            "seed": job.seed,
            "env": report["env"],
            "env_options": report["env_options"],
            "overrides": arm["overrides"],
            **described(arm["agent"], place, report),
            **{name: report[name] for name in SKILL if name in report},
            "sampled": sampled_of({"sampled": None, **report}),
            "frames": report["frames"],
            "seconds": report["seconds"],
            "steps_per_second": round(report["frames"] / report["seconds"], 1),
            "frames_to_90": frames_to_90,
            "seconds_to_90": seconds_to_90,
            "sampled_success": curve[-1][2] if curve else None,
            "curve": thinned(curve),
            **cost_of(place),
        }
        if report.get("levels"):
            outcomes = {"arm": job.arm, "seed": job.seed, **outcomes_of({"sampled": None, **report})}
            put(self.folder / "levels.json", [outcomes], self.key)
        return [record, *self.reference_records(report, "_fog" * arm["fog"], fog=arm["fog"])]


def rate_of(agent: str) -> str:
    """The setting that is an agent's learning rate."""
    return "settings.learning_rate" if agent in NETWORKS else "algo.learning_rate"


def described(agent: str, place: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What was trained, as the run itself says."""
    if agent not in NETWORKS:
        info = agent_info(place)
        same = {name: info[name] for name in ("algo", "core", "carry", "segments", "time_gradient")}
        return {**same, **{name: info.get(name) for name in ("clock", "kernel", "instruction_set")}}
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
        "kernel": None,
        "instruction_set": instruction_set(),
    }


if __name__ == "__main__":
    runner.main(Study, HERE)
