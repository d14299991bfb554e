"""What a second process costs, and what it gives: the default training run as one process and as two.

    python experiments/speed/data_parallel.py [OVERRIDE ...]

Three ways to use the machine take turns in every round, so that other work on it meets all of them: one process with
one thread, one process with two (shards), two processes with one thread each, under `torchrun`. Overrides are those of
`hrm_agent.train`. Ratios are within a round; of rounds the median is reported. All
take the same number of steps from the same seed, so their weights afterwards say whether they learn the same. Writes
`experiments/speed/data_parallel.json`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.engine import machine
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.parallel.processes import Processes, TorchProcesses, join
from hrm_agent.tensors.files import load_tensors, save_tensors
from hrm_agent.tensors.trees import flatten, unflatten
from hrm_agent.training.tracking import Console, NoLog
from hrm_agent.training.trainer import Trainer

ROUNDS, WARM_UP, ITERATIONS, ALONE_CALLS, DRAWS = 3, 2, 8, 300, 50
ARMS = {"1 process x 1 shard": (1, 1), "1 process x 2 shards": (1, 2), "2 processes x 1 shard": (2, 1)}
EXCHANGES = ("all_reduce_gradients", "all_reduce", "all_gather_rows", "agree")


def timed(owner: Any, name: str, seconds: dict[str, float]) -> None:
    """Add up the wall-clock seconds inside a method: waiting for the other process is in them.

    `agree` and `all_gather_rows` use `all_reduce`, so part of theirs is counted there too.
    """
    method: Callable[..., Any] = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = method(*args, **kwargs)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
        return result

    setattr(owner, name, wrapper)


def all_reduce_alone(processes: Processes, numbers: int) -> float:
    """Median seconds of one all-reduce of so many float32, nobody being waited for."""
    buffer, taken = torch.zeros(numbers), []
    for _ in range(ALONE_CALLS):
        processes.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(buffer)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def draw_actions(environments: int) -> float:
    """Median seconds of processor time for one step's random numbers, which every process draws for everybody."""
    generator, taken = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        began = time.process_time()
        torch.rand(environments, 1, generator=generator, dtype=torch.float64)
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def measure(shards: int, kept: Path, overrides: list[str]) -> None:
    """One process of one arm; rank 0 prints what it measured, and keeps the weights before and after."""
    processes = join()
    seconds: dict[str, float] = {}
    values = resolve(compose_config([*overrides, f"shards={shards}"], "train"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(*settings(values), Path(folder), None, processes)
        log, console = NoLog(), Console(quiet=True)
        initial = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
        for _ in range(WARM_UP):
            trainer.iterate(log, console)
        if isinstance(processes, TorchProcesses):
            for name in EXCHANGES:
                timed(processes, name, seconds)
        processes.barrier()
        began, used, before = time.perf_counter(), time.process_time(), trainer.frames
        for _ in range(ITERATIONS):
            trainer.iterate(log, console)
            processes.agree(0.0, False)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        frames = trainer.frames - before
        trained = sum(p.numel() for p in trainer.policy.parameters() if p.grad is not None)
        everybody = processes.all_reduce(
            torch.tensor([cpu, *(seconds.get(n, 0.0) for n in EXCHANGES)], dtype=torch.float64)
        )
        result = {
            "frames_per_second": frames / wall,
            "cpu_seconds_per_1000_frames": everybody[0].item() / frames * 1000,
            "parameters": trained,
            "optimizer_steps": int(next(iter(trainer.algo.optimizer.state.values()))["step"]),
        }
        if isinstance(processes, TorchProcesses):
            shares = dict(zip(EXCHANGES, (everybody[1:] / processes.world_size / wall).tolist(), strict=True))
            result["share_of_time_in_exchanges"] = shares
            result["all_reduce_alone_seconds"] = all_reduce_alone(processes, trained)
        if processes.is_rank_zero:
            weights = {**flatten("initial", initial), **flatten("final", trainer.policy.state_dict())}
            save_tensors(kept, weights, {"episodes": [list(e) for e in trainer.collector.episodes]})
            print(json.dumps(result))
    processes.leave()


def start(processes: int, shards: int, kept: Path, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [__file__, "--measure", str(shards), str(kept), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(one: Path, other: Path) -> dict[str, Any]:
    """How far two runs of the same steps are apart, beside how far they have come; and whether they lived the same."""
    (tensors, lived), (others, lived_otherwise) = load_tensors(one), load_tensors(other)
    first, last, last_other = unflatten("initial", tensors), unflatten("final", tensors), unflatten("final", others)
    return {
        "largest_difference_of_a_weight": max(float((last[n] - last_other[n]).abs().max()) for n in last),
        "largest_change_of_a_weight": max(float((last[n] - first[n]).abs().max()) for n in last),
        "same_episodes": lived["episodes"] == lived_otherwise["episodes"],
        "episodes": len(lived["episodes"]),
    }


def median(rounds: list[dict[str, dict[str, Any]]], number: Callable[[dict[str, dict[str, Any]]], float]) -> float:
    return round(statistics.median(map(number, rounds)), 6)


def main(overrides: list[str]) -> None:
    torch.set_num_threads(1)
    load, rounds = [machine.load()], []
    folder = Path(tempfile.mkdtemp())
    kept = {arm: folder / f"{i}.safetensors" for i, arm in enumerate(ARMS)}
    for _ in range(ROUNDS):
        rounds.append({arm: start(*how, kept[arm], overrides) for arm, how in ARMS.items()})
        load.append(machine.load())
        print({arm: round(found["frames_per_second"]) for arm, found in rounds[-1].items()}, flush=True)
    one, threads, two = ARMS
    speed, cost = "frames_per_second", "cpu_seconds_per_1000_frames"
    shares = {n: median(rounds, lambda r, n=n: r[two]["share_of_time_in_exchanges"][n]) for n in EXCHANGES}
    parameters = rounds[0][two]["parameters"]
    result = {
        "command": machine.command(),
        "machine": f"{machine.cores_and_kind()}; gloo on one machine",
        "load_average": {"before": load[0], "after_each_round": load[1:]},
        "rounds": ROUNDS,
        "iterations": ITERATIONS,
        "frames_per_second": {arm: round(median(rounds, lambda r, a=arm: r[a][speed])) for arm in ARMS},
        "cpu_seconds_per_1000_frames": {arm: median(rounds, lambda r, a=arm: r[a][cost]) for arm in ARMS},
        "two_processes_over_one_process_one_shard": median(rounds, lambda r: r[two][speed] / r[one][speed]),
        "two_processes_over_one_process_two_shards": median(rounds, lambda r: r[two][speed] / r[threads][speed]),
        "cpu_two_processes_over_one_process_one_shard": median(rounds, lambda r: r[two][cost] / r[one][cost]),
        "share_of_time_in_exchanges_waiting_included": shares,
        "all_reduce": {
            "parameters": parameters,
            "bytes": 4 * parameters,
            "microseconds_alone": round(1e6 * median(rounds, lambda r: r[two]["all_reduce_alone_seconds"]), 1),
        },
        "same_learning": {f"{two} and {arm}": compare(kept[arm], kept[two]) for arm in (one, threads)},
        "optimizer_steps": rounds[0][two]["optimizer_steps"],
        "microseconds_to_draw_the_actions_of": {n: round(1e6 * draw_actions(n)) for n in (128, 1_280, 12_800, 128_000)},
        "each_round": rounds,
        "peak_memory_mb_of_a_process": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    machine.write(Path(__file__).with_suffix(".json"), result, indent=2)
    print(json.dumps({key: value for key, value in result.items() if key != "each_round"}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        main(sys.argv[1:])
