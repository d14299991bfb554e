"""Where the time of a training run goes: collection, update and evaluation, part by part.

    python experiments/speed/profile_training.py [--run default|paper] [--paths PATH ...] [--rounds N]

Runs in one thread, so that parts do not overlap, and times each part by wrapping it; every path of
`python -m hrm_agent.bench` gets a policy of its own from the same seed. The paper's network with a batch of
`PAPER_ROWS`: its parts do not depend on it, and a round takes seconds, not minutes. Evaluation is a number of greedy
episodes on validation levels. Writes its records into
`profile_training.json`, in place of those of the same run, and the table in `README.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments.engine.machine import command, machine, write
from experiments.engine.pages import draw
from experiments.engine.records import load
from hrm_agent.benchmarks.networks import RUNS, RunParts, build_run
from hrm_agent.benchmarks.paths import COMPILED, NoPath, available_paths, put_on
from hrm_agent.evaluation import episodes
from hrm_agent.evaluation.report import evaluate_policy
from hrm_agent.experience.collector import Collector
from hrm_agent.parallel.threads import Threads
from hrm_agent.training.learners import DQNLearner, Learner, PPOLearner, build_learner

JSON = Path(__file__).with_suffix(".json")
PAPER_ROWS = 16
OVERRIDES = {
    "default": [],
    "paper": [
        *(f"algo.{name}={PAPER_ROWS}" for name in ("num_envs", "batch_sequences", "learning_starts")),
        f"algo.capacity={8 * PAPER_ROWS}",
    ],
}
ROUNDS = {"default": (3, 20), "paper": (1, 2)}
"""Rounds that do not count, and those that do."""
EPISODES: dict[str, tuple[int, dict[str, int]]] = {"default": (500, {}), "paper": (16, {"max_episode_steps": 5})}
"""Evaluated, and options of their environments: the shares of the paper's do not depend on how long they last."""
NETWORK = ("decisions", "forward and loss", "backward")


class Clock:
    """Seconds by phase and part; time inside a part that is inside another counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.phase = ""
        self.inner = [0.0]

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.phase, began = phase, time.perf_counter()
        yield
        self.seconds[phase]["total"] += time.perf_counter() - began

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                self.seconds[self.phase][name] += whole - self.inner.pop()
                self.inner[-1] += whole

        return timed

    def parts_of(self, owner: Any, **names: str) -> None:
        """Time methods of an object, by `method="part"`."""
        for method, name in names.items():
            setattr(owner, method, self.part(name, getattr(owner, method)))


def wrap(clock: Clock, parts: RunParts, learner: Learner) -> None:
    """Time the parts of a run, whose policy and environment are its own."""
    clock.parts_of(parts.env, step="environment")
    clock.parts_of(parts.policy, step="decisions")
    clock.parts_of(learner.algo.optimizer, step="optimizer")
    if isinstance(learner, PPOLearner):
        clock.parts_of(learner.algo, loss="forward and loss")
        clock.parts_of(learner.rollout, advantages="advantages")
    elif isinstance(learner, DQNLearner):
        clock.parts_of(learner.algo, targets="targets", _average="average of the weights")
        clock.parts_of(learner.replay, add="replay", sample="replay")
        segments = learner.algo._segment_losses

        def timed_segments(*given: Any) -> Iterator[Any]:
            following = clock.part("forward and loss", segments(*given).__next__)
            while True:
                try:
                    yield following()
                except StopIteration:
                    return

        learner.algo._segment_losses = timed_segments  # type: ignore[method-assign]


def profile(run: str, path: str, rounds: int | None) -> dict[str, Any]:
    """One record: seconds of each phase, and each part's share of it.

    Raises:
        NoPath: the path does not suit the run's network.
    """
    parts, clock, shards = build_run(run, OVERRIDES[run]), Clock(), Threads(1)
    put_on(parts.policy, path)
    torch.manual_seed(0)
    space = parts.env.single_observation_space
    collector = Collector(parts.env, parts.policy, 0, shards)
    learner = build_learner(parts.policy, parts.algo, space, collector, shards, 0)
    wrap(clock, parts, learner)
    backward, torch.autograd.grad = torch.autograd.grad, clock.part("backward", torch.autograd.grad)
    warm_up, counted = ROUNDS[run][0], rounds or ROUNDS[run][1]
    try:
        for number in range(warm_up + counted):
            if number == warm_up:
                clock.seconds.clear()
                first = collector.frames
            with clock.during("collection"):
                learner.collect(collector, 0.0)
            with clock.during("update"):
                learner.update(0.0)
        count, limit = EPISODES[run]
        settings = {**parts.trainer.env_options, **limit}

        def evaluate(some: int) -> dict[str, Any]:
            return evaluate_policy(parts.policy, parts.trainer.env, settings, some, split="validation", threads=shards)

        with clock.during("compiling"):  # of the bound
            evaluate(1)
        with timed_levels(clock), clock.during("evaluation"):
            evaluated = evaluate(count)
    finally:
        torch.autograd.grad = backward
    return {
        "run": run,
        "path": path,
        "rounds": counted,
        "frames": collector.frames - first,
        "episodes_evaluated": count,
        "steps_evaluated": round(evaluated["episode_length"] * count),
        "phases": {name: shares(found) for name, found in clock.seconds.items() if name != "compiling"},
    }


@contextmanager
def timed_levels(clock: Clock) -> Iterator[None]:
    """Time the environments that evaluation makes for itself."""
    make = episodes.make_vector_env

    def timed(*given: Any) -> Any:
        env = make(*given)
        clock.parts_of(env, step="environment", reset="environment", clairvoyant="clairvoyant bound")
        return env

    episodes.make_vector_env = timed
    try:
        yield
    finally:
        episodes.make_vector_env = make


def shares(found: dict[str, float]) -> dict[str, Any]:
    """Seconds of a phase, and what each part has of it; `elsewhere` is what no part was timed for."""
    total = found["total"]
    parts = {name: s / total for name, s in sorted(found.items(), key=lambda item: -item[1]) if name != "total"}
    return {
        "seconds": round(total, 3),
        "share": {name: round(share, 4) for name, share in parts.items()},
        "share_elsewhere": round(1 - sum(parts.values()), 4),
        "share_inside_network": round(sum(parts.get(name, 0.0) for name in (*NETWORK, "targets")), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=list(RUNS), default="default")
    known = available_paths()
    usual = [path for path in known if path != COMPILED]
    parser.add_argument("--paths", nargs="+", default=usual, choices=known, metavar="PATH")
    parser.add_argument("--rounds", type=int, help="of collection and update")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = {"command": command(), "machine": machine(threads=1), "seed": 0}
    records = [r for r in load(JSON) if r.get("run") != options.run]
    for path in options.paths:
        try:
            found = profile(options.run, path, options.rounds)
        except NoPath as error:
            print(error)
            continue
        records.append({**about, **found})
        print(json.dumps(found, indent=1))
    write(JSON, records)
    draw(JSON.parent)


if __name__ == "__main__":
    main()
