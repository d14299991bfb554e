"""`python -m hrm_agent.bench [SUITE ...]`: the speed of each path relative to the plain one, and its error.

Paths take turns in one process, so that a busy machine slows all of them; ratios are medians over rounds of what was
measured in the same round. Before they are timed, their results on fresh random input are compared: a path that is off
by more than rounding explains is marked FAIL, and the command ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from rich.console import Console
from rich.table import Table

from hrm_agent.benchmarks.cases import Options, measure
from hrm_agent.benchmarks.paths import COMPILED, PLAIN, available_paths
from hrm_agent.benchmarks.peaks import matrix_peaks
from hrm_agent.benchmarks.suites import DEFAULT, SUITES
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import UsageError, usage_errors
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import Count, Positive, ThreadCount, checked
from hrm_agent.parallel.threads import available_cores, instruction_set
from hrm_agent.training.tracking import CLOCKS

TorchSeed = Annotated[int, Meta(ge=0, lt=2**31)]
WIDE = 160  # columns where the output is no terminal: no line is broken there
FAILED = 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hrm_agent.bench",
        description=__doc__.partition("\n")[0],
        epilog=f"suites: {', '.join(SUITES)}; without a name, all but published, which takes minutes",
    )
    parser.add_argument("suites", metavar="SUITE", nargs="*", help="what to measure")
    parser.add_argument("--paths", metavar="PATH", nargs="+", help="besides plain; default: all but compiled")
    parser.add_argument("--rounds", type=int, help="turns of each path; default 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="small batches and short turns, for a glance")
    parser.add_argument("--cores", type=int, default=available_cores(), help="threads that a batch is split over")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: one core on a busy machine")
    parser.add_argument("--seed", type=int, help="of the input that is compared; default: a new one every time")
    parser.add_argument("--fail-below", type=float, metavar="RATIO", help="exit code 1 where a path is slower")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every number")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Fill in what depends on other options.

    Raises:
        UsageError: an unknown suite or path, a number out of range, or no folder for the file.
    """
    for name in options.suites:
        if name not in SUITES:
            raise UsageError(f"{name}: no such suite{did_you_mean(name, list(SUITES))}")
    options.suites = list(dict.fromkeys(options.suites)) or list(DEFAULT)
    for name, kind in (("rounds", Count | None), ("cores", ThreadCount), ("seed", TorchSeed | None)):
        checked(f"--{name}", getattr(options, name), kind)
    if options.clock == "cpu" and options.cores != 1:
        raise UsageError(f"--clock cpu adds up the seconds of all {options.cores} cores; give --cores 1 with it")
    checked("--fail-below", options.fail_below, Positive | None)
    if options.out is not None:
        check_output(options.out, "--out")
    known = available_paths()
    for path in options.paths or ():
        if path not in known:
            raise UsageError(f"--paths {path}: not on this machine{did_you_mean(path, known)}")
    chosen = options.paths or [path for path in known if path != COMPILED]
    options.paths = [PLAIN, *(path for path in dict.fromkeys(chosen) if path != PLAIN)]
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seed = secrets.randbelow(2**31) if options.seed is None else options.seed


def bench(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure the suites of checked options; one table each on the console, as soon as it is known."""
    peaks = matrix_peaks(options.cores, *(((256,), 0.05) if options.quick else ()))
    console.print(f"instruction set: {instruction_set()}")
    console.print("peak GFLOP/s of matrix products: " + "; ".join(map(_format_peak, peaks.items())))
    shown, records = Options(tuple(options.paths), options.cores, options.quick), []
    for name in options.suites:
        found = []
        for case in SUITES[name](shown):
            seconds = 0.02 if options.quick else 0.5
            turn = {"rounds": options.rounds, "seconds": seconds, "now": CLOCKS[options.clock]}
            found += measure(case, seed=options.seed, peaks=peaks, **turn)
        console.print(_table(name, found, options.fail_below))
        records += found
    machine = {
        "processor": platform.machine(),
        "instruction_set": instruction_set(),
        "cores": available_cores(),
        "torch": torch.__version__,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }
    return {
        "command": " ".join(["python -m hrm_agent.bench", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": machine,
        "seed": options.seed,
        "rounds": options.rounds,
        "clock": options.clock,
        "peak_gflops": peaks,
        "records": records,
    }


def _commit() -> str | None:
    """Of the checkout that this package lies in, with `-dirty` behind it where files are changed; None without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None


def _format_peak(peak: tuple[str, dict[str, float]]) -> str:
    precision, rates = peak
    return f"{precision} " + ", ".join(f"{rate:,.0f} on {n} thread{'s'[: n != '1']}" for n, rate in rates.items())


def verdict(record: dict[str, Any], fail_below: float | None) -> str:
    """`FAIL` where a path computes something else, `SLOW` where it is below `--fail-below`, else nothing."""
    if not record["passed"]:
        return "FAIL"
    slow = fail_below is not None and record["path"] != record["against"] and record["ratio"] < fail_below
    return "SLOW" if slow else ""


def _table(suite: str, records: list[dict[str, Any]], fail_below: float | None) -> Table:
    table = Table(title=suite, title_justify="left")
    for head in ("case", "path", "ms", "x", "spread", "per second", "GFLOP/s", "of peak", "error", "allowed", "", ""):
        table.add_column(head, justify="left" if head in ("case", "path") else "right")
    for r in records:
        baseline = r["path"] == r["against"]
        table.add_row(
            r["name"],
            r["path"],
            "" if r["seconds"] is None else f"{1000 * r['seconds']:,.2f}",
            "" if r["ratio"] is None else f"{r['ratio']:.2f}",
            "" if baseline or r["ratio"] is None else f"{r['ratio_least']:.2f} to {r['ratio_most']:.2f}",
            "" if r["per_second"] is None else f"{r['per_second']:,.1f} {r['unit']}",
            "" if r["gflops"] is None else f"{r['gflops']:,.1f}",
            "" if r["share_of_peak"] is None else f"{r['share_of_peak']:.0%}",
            "" if baseline else "none finite" if r["error"] is None else f"{r['error']:.1e}",
            "" if baseline else f"{r['tolerance']:.1e}",
            "auto" if r["path"] == r["auto"] else "",
            verdict(r, fail_below),
            end_section=r is records[-1],
        )
    return table


@outliving_the_terminal()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = build_parser().parse_args(arguments)
    console = Console()
    with usage_errors():
        check_options(options)
        result = bench(options, console if console.is_terminal else Console(width=WIDE))
        if options.out is not None:
            write_output(options.out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
            print(f"wrote {options.out}")
    found = [verdict(record, options.fail_below) for record in result["records"]]
    for word, what in (("FAIL", "computed something else than the plain path"), ("SLOW", "slower than asked for")):
        if word in found:
            again = f"; again with --seed {options.seed}" if word == "FAIL" else ""
            print(f"{word}: {found.count(word)} of {len(found)} {what}{again}", file=sys.stderr)
    return FAILED if any(found) else 0


if __name__ == "__main__":
    sys.exit(main())
