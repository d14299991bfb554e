"""The plain published recipe of HRM-Agent's network against our policy with the same weights.

    python experiments/speed/plain_hrm_agent.py [--batch 256] [--rounds 3] [--cores 2] [--clock cpu] [--paths PATH ...]

Decisions (8 segments) and training segments (forward, squared error of Q-values, backward of the last cycles,
optimizer, average of the weights), in float32 and in bfloat16 as published; the recipe is
`hrm_agent/benchmarks/published.py`. Both compute the same: Q-values, latents and gradients are compared on fresh input
before anything is timed. It takes some minutes, half of them for one decision in float32; measure on a quiet machine,
where torch's threads do not wait for other work, or one core in processor seconds (`--cores 1 --clock cpu`). Results go
to `plain_hrm_agent.json` and into the table in `README.md`.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from experiments.engine.machine import command, machine, write
from experiments.engine.pages import draw
from hrm_agent.benchmarks.cases import Options, measure
from hrm_agent.benchmarks.paths import COMPILED, PLAIN_BF16, available_paths
from hrm_agent.benchmarks.peaks import matrix_peaks
from hrm_agent.benchmarks.recipe import BATCH, published
from hrm_agent.parallel.threads import available_cores
from hrm_agent.training.tracking import CLOCKS

JSON = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=available_cores())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: with --cores 1")
    known = available_paths()
    chosen = [path for path in known if path not in (COMPILED, PLAIN_BF16)]
    parser.add_argument("--paths", nargs="*", default=chosen, choices=known, help="of ours, beside the recipe")
    parser.add_argument("--out", type=Path, default=JSON)
    options = parser.parse_args()
    if options.clock == "cpu" and options.cores != 1:
        parser.error("--clock cpu adds up the seconds of all cores; give --cores 1 with it")
    peaks, seed, records = matrix_peaks(options.cores), secrets.randbelow(2**31), []
    for case in published(Options(tuple(options.paths), options.cores), options.batch):
        found = measure(case, rounds=options.rounds, seconds=1.0, seed=seed, peaks=peaks, now=CLOCKS[options.clock])
        for r in found:
            error = "" if r["error"] is None else f", error {r['error']:.1e} of {r['tolerance']:.1e} allowed"
            rate = f"{r['per_second']:.3f} {r['unit']}/s, x {r['ratio']:.2f}" if r["passed"] else "FAIL"
            print(f"{r['name']}, {r['path']}: {rate}{error}", flush=True)
        records += found
    result = {
        "command": command(),
        "machine": machine(cores=options.cores),
        "seed": seed,
        "clock": options.clock,
        "rounds": options.rounds,
        "peak_gflops": peaks,
        "records": records,
    }
    write(options.out, result)
    if options.out == JSON:
        draw(JSON.parent)


if __name__ == "__main__":
    main()
