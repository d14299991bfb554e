"""Training speed of our recurrent PPO with the GRU core beside sb3-contrib's RecurrentPPO, by the wall clock.

    python experiments/speed/recurrent_ppo.py [--rounds 5] [--seconds 10] [--kernel auto]

Two pairs of equal numbers of parameters (to a percent or two; the JSON has both): the library's size, to which the
memory of our GRU is matched in steps of 16, and the size of our shipped GRU, to which the library's LSTMs are matched.
All collect and train in this process, one thread each, on the same environment, with equally many environments, steps
between updates, decisions in a minibatch and passes over a rollout: those of our shipped settings. Ours and theirs
alternate; in every turn one gets whole iterations (collection and updates) until its time is over, and the first
iteration of each does not count. A ratio is of two neighbouring turns, so that a machine that becomes slower does so
for both. Processor seconds stand beside: where they are fewer than those of the clock, other work was in the way.
Writes `experiments/speed/recurrent_ppo.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported

from experiments.baselines.throughput import ENV, Ours, Theirs, matched
from experiments.engine import turns
from experiments.engine.machine import command, commit_of_code, load, processor, write
from hrm_agent import recurrence
from hrm_agent.baselines.agents import RecurrentPPOSettings
from hrm_agent.kernels.cpu.stack import instructions

HERE = Path(__file__).resolve().parent
SEED = 0  # of both


def pairs() -> dict[str, tuple[Ours, Theirs]]:
    """Ours and theirs, by whose size both have."""
    shipped = Ours("gru")
    library = Theirs(shipped.rollout, RecurrentPPOSettings().lstm_size)
    as_large = matched(lambda size: Ours("gru", memory_size=16 * size), library.parameters)
    as_small = matched(lambda size: Theirs(shipped.rollout, size), shipped.parameters)
    assert isinstance(as_large, Ours)
    assert isinstance(as_small, Theirs)
    return {"the library's": (as_large, library), "our shipped GRU's": (shipped, as_small)}


def turn(name: str, agent: Ours | Theirs, seconds: float) -> dict[str, float]:
    """Frames by both clocks, over whole iterations."""
    taken = turns.turn(agent.iterate, seconds)
    frames = taken.calls * agent.frames
    print(f"  {name} {frames / taken.wall:,.0f} steps/s", flush=True)
    return {
        "steps_per_second": round(frames / taken.wall, 1),
        "steps_per_processor_second": round(frames / taken.cpu, 1),
    }


def compare(ours: Ours, theirs: Theirs, rounds: int, seconds: float) -> dict[str, Any]:
    """Turns of both, and the ratios of neighbours."""
    agents = {"ours": ours, "theirs": theirs}
    found = turns.by_turns({name: partial(turn, name, agent, seconds) for name, agent in agents.items()}, rounds)

    def ratios(clock: str) -> list[float]:
        return turns.ratios(*([taken[clock] for taken in found[name]] for name in agents))

    wall, cpu = ratios("steps_per_second"), ratios("steps_per_processor_second")
    return {
        "parameters": {"ours": ours.parameters, "theirs": theirs.parameters},
        "size": {"ours": ours.size, "theirs": theirs.size},
        "macs_per_decision": {"ours": ours.count_macs(), "theirs": theirs.count_macs()},
        "ratio": statistics.median(wall),
        "ratios": wall,
        "ratios_of_processor_time": cpu,
        "turns": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn, by the clock")
    parser.add_argument("--kernel", choices=recurrence.CHOICES, default="auto", help="of ours")
    parser.add_argument("--out", type=Path, default=HERE / "recurrent_ppo.json")
    given = parser.parse_args()
    if given.rounds < 1:
        sys.exit(f"error: --rounds {given.rounds}: expected 1 or more")
    load_before = load()
    commit, found = commit_of_code(), pairs()
    paths = {name: ours.settle_kernel(given.kernel) for name, (ours, _) in found.items()}
    for agents in found.values():
        for agent in agents:
            agent.iterate()
    measured = {}
    for name, (ours, theirs) in found.items():
        print(f"{name} size: {ours.parameters:,} and {theirs.parameters:,} parameters", flush=True)
        measured[name] = compare(ours, theirs, given.rounds, given.seconds)
        print(f"  ours is {measured[name]['ratio']:.2f} times as fast", flush=True)
    result = {
        "command": command(),
        "commit": commit,
        "processor": processor()["model"],
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "load_before": load_before,
        "load_after": load(),
        "threads": 1,
        "clock": "wall",
        "seed": SEED,
        "env": ENV,
        "kernel": paths,
        "same": found["the library's"][1].rollout,
        "pairs": measured,
    }
    write(given.out, result)


if __name__ == "__main__":
    main()
