"""The next move of the Towers of Hanoi as a puzzle: train, test on every number of disks, and record.

    python -m experiments.hanoi.puzzles --list
    python -m experiments.hanoi.puzzles [--jobs 2] [--only trm 0] | --draw-only

`puzzles.yaml` says what is trained and tested. Each run has one thread; seconds are processor time of training. A
record is one trained model, with its scores by number of disks, in `puzzles.json`; what has one is not run again.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine import runner
from experiments.engine.machine import commit_of_code
from experiments.engine.pages import settings_of
from experiments.engine.records import RUNS, Record, load, put
from experiments.engine.runner import Job
from experiments.engine.runs import Curve, cost_of, metrics, thinned
from hrm_agent.supervised.tasks.hanoi_play import Choose, Pegs, play_out
from hrm_envs.hanoi_rules import NO_DISK, PAIRS

HERE = Path(__file__).resolve().parent
REQUIRED = frozenset({
    "agent", "algo", "task", "task_options", "core", "seed", "parameters", "steps", "samples", "seconds", "clock",
    "by_disks", "curve", "command", "commit", "instruction_set",
})  # fmt: skip


class Puzzles(runner.Study):
    """Runs of `hrm_agent.supervise`, each tested by `hrm_agent.solve`."""

    module = "hrm_agent.supervise"
    finished = "models/last/model.safetensors"
    results = "puzzles.json"
    required = REQUIRED

    def __init__(self, folder: Path = HERE, side_by_side: int = 1) -> None:
        super().__init__(folder, side_by_side)
        self.settings = settings_of(HERE, "puzzles.yaml")

    def place(self, job: Job) -> Path:
        return RUNS / "hanoi_puzzles" / f"{job.arm}_seed{job.seed}"

    def is_trained(self, place: Path) -> bool:
        """The last model is written before the validation that ends a run, and that adds its score."""
        info = place / "models" / "last" / "model.json"
        return info.exists() and bool(json.loads(info.read_text())["validation"])

    def overrides(self, job: Job) -> list[str]:
        own = self.arm(job.arm)["overrides"]
        return [*self.settings["base"], *own, f"seed={job.seed}", f"threads={self.settings['threads']}"]

    def measure(self, job: Job) -> list[Record]:
        place = self.trained(job)
        info = json.loads((place / "models" / "last" / "model.json").read_text())
        same = ("task", "task_options", "core", "seed", "parameters", "steps", "samples", "seconds", "clock",
                "kernel", "instruction_set")  # fmt: skip
        record = {
            "agent": job.arm,
            "algo": "supervised",
            **{name: info[name] for name in same},
            "max_segments": info["max_segments"],
            "by_disks": {str(disks): self.test(place, disks) for disks in self.settings["test"]["disks"]},
            "curve": thinned(learning_curve(metrics(place))),
            **cost_of(place, side_by_side=self.side_by_side),
        }
        return [record]

    def test(self, place: Path, disks: int, segments: int = 0) -> Record:
        """States and whole games of so many disks; of the trained number of tokens, or of as many as are needed.

        Args:
            segments: of every move; 0: as many as in training.
        """
        from hrm_agent.launch.solve import solve

        given = self.settings["test"]
        trained = json.loads((place / "models" / "last" / "model.json").read_text())["task_options"]["disks"]
        options: dict[str, Any] = {"disks": max(disks, trained), "test_disks": disks, "solutions": given["games"]}
        asked = {"split": given["split"], "puzzles": given["states"], "segments": segments}
        report = solve(str(place), task_options=options, best=False, **asked)
        found: Record = report["task"]["by_disks"][str(disks)]
        return {**found, "segments": report["segments"], "exact_by_segment": report["curves"]["exact"]}

    def summary(self, record: Record) -> str:
        solved = {disks: own["solved_2x"] for disks, own in record["by_disks"].items()}
        return f"solved {' '.join(f'{disks}: {share:.2f}' for disks, share in solved.items())}"

    def finish(self) -> None:
        """Solve with other numbers of segments than in training, and move towers."""
        self.think_longer()
        self.move_towers()

    def think_longer(self) -> None:
        """Trained models with other numbers of segments, into `segments.json`."""
        given, path = self.settings["more"], self.folder / "segments.json"
        key = ("agent", "seed", "segments", "disks")
        known = {tuple(record[field] for field in key) for record in load(path)}
        for arm, segments, disks in itertools.product(given["agents"], given["segments"], given["disks"]):
            for seed in self.arm(arm)["seeds"]:
                place = self.place(Job(arm, seed))
                if (arm, seed, segments, disks) in known or not self.is_trained(place):
                    continue
                found = self.test(place, disks, segments)
                kept = {name: found[name] for name in ("exact", "legal", "optimal", "solved_2x", "illegal", "games")}
                own = {"agent": arm, "seed": seed, "segments": segments, "disks": disks}
                put(path, [{**own, **kept, "commit": commit_of_code()}], key)
                print(f"{arm} {seed}, {segments} segments, {disks} disks: solved {found['solved_2x']:.2f}", flush=True)

    def move_towers(self) -> None:
        """Trained models move towers from each peg to each other one, into `towers.json`; one game into `shown.json`.

        States in which most disks lie on one peg are rare among random ones.
        """
        path, shown = self.folder / "towers.json", self.settings["shown"]
        known = {(record["agent"], record["seed"]) for record in load(path)}
        for job in self.jobs():
            place = self.place(job)
            if (job.arm, job.seed) in known or not self.is_trained(place):
                continue
            choose, tokens = player_of(place)
            games = {n: play_out(choose, *towers(n, tokens)) for n in self.settings["towers"]}
            solved = {str(n): int(own.solved.sum()) for n, own in games.items()}
            optimally = {str(n): int((own.solved & (own.moves == own.distance)).sum()) for n, own in games.items()}
            own = {"agent": job.arm, "seed": job.seed, "solved": solved, "optimal": optimally, "games": len(PAIRS)}
            put(path, [{**own, "commit": commit_of_code()}], ("agent", "seed"))
            print(f"{job}: towers solved {solved}", flush=True)
            if (job.arm, job.seed) == (shown["agent"], shown["seed"]):
                game = {"agent": job.arm, "seed": job.seed, **game_shown(choose, shown["disks"], tokens)}
                put(self.folder / "shown.json", [{**game, "commit": commit_of_code()}], ("agent",))


def player_of(place: Path) -> tuple[Choose, int]:
    """What chooses the moves of a run's model, and the number of its tokens."""
    from hrm_agent.supervised.evaluation import solver_of
    from hrm_agent.supervised.files import load_model
    from hrm_agent.supervised.tasks import build_task
    from hrm_agent.supervised.tasks.hanoi import choose_moves

    info = json.loads((place / "models" / "last" / "model.json").read_text())
    task = build_task("hanoi", info["task_options"])
    model = load_model(place / "models" / "last" / "model.safetensors")
    solve = solver_of(model, task, "test", info["max_segments"], "softmax")
    return partial(choose_moves, solve), info["task_options"]["disks"]


def towers(disks: int, tokens: int) -> tuple[Pegs, Pegs]:
    """Starts and goals int64 [6, tokens]: all disks on one peg, and on another one."""
    padding = np.full((len(PAIRS), tokens - disks), NO_DISK)
    start, goal = (np.concatenate([padding, np.repeat(pegs[:, None], disks, 1)], 1) for pegs in np.array(PAIRS).T)
    return start, goal


def game_shown(choose: Choose, disks: int, tokens: int) -> Record:
    """A tower moved from the first peg to the last: the states it comes through, one character a disk."""
    row = PAIRS.index((0, 2))
    start, goal = (pegs[row : row + 1] for pegs in towers(disks, tokens))
    states: list[Pegs] = []

    def watched(pegs: Pegs, goals: Pegs) -> tuple[Pegs, Pegs]:
        states.append(pegs[0].copy())
        return choose(pegs, goals)

    game = play_out(watched, start, goal)
    states += [goal[0]] if game.solved[0] else []
    return {
        "disks": disks,
        "distance": int(game.distance[0]),
        "moves": int(game.moves[0]),
        "solved": bool(game.solved[0]),
        "states": ["".join(str(peg) for peg in state[-disks:]) for state in states],
    }


def learning_curve(lines: list[dict[str, Any]]) -> Curve:
    """Steps, seconds of training, and the share of training puzzles whose first choice is an optimal move."""
    known = [line for line in lines if "train/exact" in line]
    return [[line["steps"], round(line["train/seconds"], 1), round(line["train/exact"], 4)] for line in known]


if __name__ == "__main__":
    runner.main(Puzzles, HERE)
