"""Train agents on small mazes and play them on larger ones, up to 59x59: what has no record yet.

    python -m experiments.sizes.run --jobs 2
    python -m experiments.sizes.run --list | --only dagger-several 0 | --draw-only

A record has success on every size, greedy and sampled, beside the re-planner and the bound, and what a decision costs
there; `levels.json` has the outcome on every level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.baselines.run import flat
from experiments.engine import runner
from experiments.engine.records import Record, put
from experiments.engine.runner import Job
from experiments.engine.runs import agent_info, cost_of
from hrm_agent.agents.agent import Agent
from hrm_agent.agents.registry import load_agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.cost import measure_cost
from hrm_agent.shifts import shifts

HERE = Path(__file__).resolve().parent
INFO = ("env", "algo", "core", "carry", "segments", "frames", "seconds", "kernel", "instruction_set")


class Study(runner.Study):
    """Settings may name lists of overrides, which arms repeat."""

    def arms(self) -> dict[str, Any]:
        return {name: flat(given) for name, given in self.settings["arms"].items()}

    def measure(self, job: Job) -> list[Record]:
        place, played = self.trained(job), self.settings["played"]
        report = shifts(str(place), played["episodes"], axes=["size"], sizes=played["sides"], best=False)
        own, info, agent = {"agent": job.arm, "seed": job.seed}, agent_info(place), load_agent(place, None, best=False)
        found = [point for point in report["records"] if point["side"] in played["sides"]]
        for point in found:
            if point["skipped"] is None:
                outcome = {**own, "side": point["side"], "success": point["levels"]["success"]}
                put(self.folder / "levels.json", [outcome], ("agent", "seed", "side"))
        record = {
            **own,
            **{name: info[name] for name in INFO if name in info},
            "split": report["split"],
            "sizes": [at_size(point, agent) for point in found],
            **cost_of(place, side_by_side=self.side_by_side),
        }
        return [record]

    def summary(self, record: Record) -> str:
        return ", ".join(f"{at['side']}: {at['success']:.3f}" for at in record["sizes"] if at["success"] is not None)


def at_size(point: dict[str, Any], agent: Agent) -> Record:
    """Of one size what a record keeps; success None where the agent could not be played there."""
    if point["skipped"] is not None:
        return {"side": point["side"], "success": None, "skipped": point["skipped"]}
    env = make_vector_env(point["env"], 1, point["env_options"])
    cost = measure_cost(agent.fit(env.single_observation_space).policy, env.single_observation_space, batch=32)
    env.close()
    return {
        "side": point["side"],
        **{name: point[name] for name in ("success", "success_ci95", "spl", "segments_per_decision")},
        "sampled": {name: point["sampled"][name] for name in ("success", "success_ci95")},
        **{name: point[name]["success"] for name in ("bfs_replanner", "clairvoyant")},
        **{name: cost[name] for name in ("macs_per_decision", "ms_per_decision", "ms_per_decision_batched")},
    }


if __name__ == "__main__":
    runner.main(Study, HERE)
