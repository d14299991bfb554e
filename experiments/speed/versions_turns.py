"""One side of `versions.py`: runs with the package that PYTHONPATH names, which may be an earlier one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

ENV, AGENT, LEVELS = "DynamicMaze-v0", "DynamicMaze-TRM-v0", 500
DECISIONS = {"default": 60, "paper": 1}  # in a turn


def first_of(*names: str) -> Any:
    """`MODULE:NAME`, of the first that there is: names have changed."""
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(f"hrm_agent.{module}"), attribute)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"error: this version has none of {', '.join(names)}")


def decisions(size: str, path: str, rows: int) -> Callable[[], None]:
    build_run = first_of("benchmarks.networks:build_run")
    make = first_of("benchmarks.decisions:policy_decisions", "benchmarks.deciding:decider")
    fitting = ["algo.minibatch_windows=1"] if size == "default" else []
    run = make(build_run(size, [f"algo.num_envs={rows}", *fitting]), rows, path, 2).run

    def turn() -> None:
        for _ in range(DECISIONS[size]):
            run()

    return turn


def evaluations() -> Callable[[], None]:
    evaluate = first_of("evaluation.report:evaluate_policy")
    threads = first_of("parallel.threads:Threads", "parallel:Shards")(2)
    policy = first_of("agents.registry:make", "registration:make")(AGENT).policy
    first_of("recurrence:use", "kernels:use")(policy, "fused")
    name = "threads" if "threads" in evaluate.__code__.co_varnames else "shards"
    return lambda: evaluate(policy, ENV, {}, LEVELS, **{name: threads})


def main() -> None:
    kind, *given = sys.argv[1:]
    turn = evaluations() if kind == "evaluation" else decisions(given[0], given[1], int(given[2]))
    for _ in range(2):
        turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        turn()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
