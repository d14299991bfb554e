"""The plain published recipe of HRM-Agent's network against our policy with the same weights.

    python experiments/speed/plain_hrm_agent.py [--batch 256] [--rounds 3] [--cores 2] [--clock cpu] [--paths PATH ...]

Decisions (8 segments) and training segments (forward, squared error of Q-values, backward of the last cycles,
optimizer, average of the weights), in float32 and in bfloat16 as published; the recipe is
`hrm_agent/benchmarks/published.py`. Both compute the same: Q-values, latents and gradients are compared on fresh input
before anything is timed. The authors' own code on two cores of this kind, batch 256, did what stands in `AUTHORS`: the
recipe should land near it. It takes some minutes, of which one decision in float32 is half; measure on a quiet machine,
where torch's threads do not wait for other work, or one core in processor seconds (`--cores 1 --clock cpu`; the
authors' figures are of two). Results go to `plain_hrm_agent.json` and
into the table in `README.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import sys
from pathlib import Path
from typing import Any

import torch

from hrm_agent.benchmarks.cases import Options, measure
from hrm_agent.benchmarks.paths import COMPILED, PLAIN_BF16, available_paths
from hrm_agent.benchmarks.peaks import matrix_peaks
from hrm_agent.benchmarks.recipe import BATCH, published
from hrm_agent.parallel.threads import available_cores
from hrm_agent.training.tracking import CLOCKS

JSON = Path(__file__).with_suffix(".json")
PAGE = JSON.with_name("README.md")
AUTHORS = {
    ("decisions", "published"): 10.8,
    ("decisions", "published_bf16"): 23.4,
    ("segments", "published"): 1 / 8.7,
    ("segments", "published_bf16"): 1 / 4.4,
}
"""Per second, on two cores, batch 256: measured with the authors' code when this project was planned."""


def table(result: dict[str, Any]) -> str:
    """Markdown: a row for each path and kind of work."""
    head = ["", "path", "per second", "authors' code, two cores", "x the recipe", "error", "allowed"]
    lines = [head, ["---"] * len(head)]
    for r in result["records"]:
        theirs, error = r["authors_per_second"], r["error"]
        rate, ratio = (f"{r['per_second']:.3g}", f"{r['ratio']:.2f}") if r["passed"] else ("FAIL", "")
        checked = ["", ""] if error is None else [f"{error:.0e}", f"{r['tolerance']:.0e}"]
        lines.append([r["name"], r["path"], rate, f"{theirs:.3g}" if theirs else "", ratio, *checked])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with its table drawn from the result."""
    begin, end = "<!-- table plain_hrm_agent -->\n", "\n<!-- /table plain_hrm_agent -->"
    before, _, rest = page.partition(begin)
    clock = {"cpu": "processor seconds", "wall": "wall clock"}[result["clock"]]
    cores, rounds = result["machine"]["cores"], result["rounds"]
    said = f"{cores} core{'s'[: cores != 1]}, {clock}, {rounds} round{'s'[: rounds != 1]}:"
    return before + begin + f"{said}\n\n{table(result)}" + end + rest.partition(end)[2]


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
            r["authors_per_second"] = AUTHORS.get((r["unit"], r["path"])) if options.batch == BATCH else None
            theirs = r["authors_per_second"]
            beside = f", the authors' code on two cores {theirs:.3f}" if theirs else ""
            error = "" if r["error"] is None else f", error {r['error']:.1e} of {r['tolerance']:.1e} allowed"
            rate = f"{r['per_second']:.3f} {r['unit']}/s, x {r['ratio']:.2f}" if r["passed"] else "FAIL"
            print(f"{r['name']}, {r['path']}: {rate}{beside}{error}", flush=True)
        records += found
    result = {
        "command": " ".join(["python experiments/speed/plain_hrm_agent.py", *sys.argv[1:]]),
        "machine": {
            "processor": platform.machine(),
            "cores": options.cores,
            "torch": torch.__version__,
            "load": os.getloadavg(),
        },
        "seed": seed,
        "clock": options.clock,
        "rounds": options.rounds,
        "peak_gflops": peaks,
        "records": records,
    }
    options.out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if options.out == JSON:
        PAGE.write_text(filled(PAGE.read_text(), result))


if __name__ == "__main__":
    main()
