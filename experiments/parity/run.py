"""Every path against the authors' numbers, with one thread and with two, and kernels of every instruction set.

    python -m experiments.parity.run FILE.safetensors ...

Writes `parity.json`: the largest error of every file. Kernels of other sets than the processor's are compiled with
their flags; AVX-512 runs in software where the processor has none (`tests/hrm_agent/kernels/instruction_sets`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.engine.machine import command, commit_of_code, write
from experiments.engine.records import ROOT
from hrm_agent.parallel.threads import instruction_set

HERE = Path(__file__).resolve().parent
SHIM = ROOT / "tests" / "hrm_agent" / "kernels" / "instruction_sets" / "avx512_in_software.h"
SOFTWARE = f"-O1 -mno-avx512f -Wno-psabi -include {SHIM}"
KERNELS = {
    "as the processor": "",
    "avx512_bf16 (in software)": SOFTWARE,
    "avx512 (in software)": f"{SOFTWARE} -DWITHOUT_BFLOAT16",
    "plain vectors": "-march=x86-64",
}


def check(files: list[str], path: str, threads: int, flags: str = "") -> list[dict[str, Any]]:
    """One record a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HRM_AGENT_CXXFLAGS": flags}
    typed = [sys.executable, "-m", "hrm_agent.parity", "--path", path, *files]
    answer = subprocess.run(typed, capture_output=True, text=True, env=environment, check=False)
    found = re.findall(r"^(\S+)\n(?:  .*\n)*?  (agrees|DIFFERS)\D*([\d.e+-]+)", answer.stdout, re.MULTILINE)
    if len(found) != len(files):
        raise SystemExit(f"{' '.join(typed)}: {answer.stdout[-500:]} {answer.stderr[-500:]}")
    return [{"file": Path(f).name, "agrees": word == "agrees", "largest_error": float(e)} for f, word, e in found]


def main() -> None:
    files = sys.argv[1:]
    if not files:
        raise SystemExit(__doc__)
    records = []
    for threads in (1, 2):
        for name, flags in KERNELS.items():
            half = "bf16" in (name if flags else instruction_set())
            paths = ["plain"] * (not flags) + ["fused"] + ["fused_bf16"] * half
            for path in paths:
                own = {"path": path, "threads": threads, **({} if path == "plain" else {"kernels": name})}
                records += [{**own, **record} for record in check(files, path, threads, flags)]
                print(own, max(r["largest_error"] for r in records[-len(files) :]), flush=True)
    whole = {"command": command("FILES"), "commit": commit_of_code(), "processor": instruction_set()}
    write(HERE / "parity.json", {**whole, "records": records})
    raise SystemExit(not all(r["agrees"] for r in records))


if __name__ == "__main__":
    main()
