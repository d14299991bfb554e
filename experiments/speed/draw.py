"""Tables of the page and the figure of the rooflines, from the JSON files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine.figures import panels, save
from experiments.engine.records import Record
from experiments.engine.tables import table

PLAIN = "plain"


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    makers = {
        "default_run": default_run_table,
        "plain_hrm_agent": recipe_table,
        "profile_training": profile_table,
    }
    made = {name: make(json.loads((folder / f"{name}.json").read_text())) for name, make in makers.items()}
    return made | roofline_tables(json.loads((folder / "roofline.json").read_text()))


def default_run_table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["summary"]:
        middle, least, most = row["x_plain"]
        rows.append(
            {
                "settings": row["run"],
                "`kernel=`": row["path"],
                "taken": row["kernel"],
                "frames a second, median": f"{row['frames_per_second']:,.0f}",
                "times the plain path (least, most)": f"{middle:.2f} ({least:.2f}, {most:.2f})",
                "of the limit": f"{row['share_of_limit']:.0%}",
            }
        )
    return table(rows)


def recipe_table(result: dict[str, Any]) -> str:
    """A row for each path and kind of work, after a line that says how it was measured."""
    rows = []
    for r in result["records"]:
        error = r["error"]
        rows.append(
            {
                "": r["name"],
                "path": r["path"],
                "per second": f"{r['per_second']:.3g}" if r["passed"] else "FAIL",
                "x the recipe": f"{r['ratio']:.2f}" if r["passed"] else "",
                "error": "" if error is None else f"{error:.0e}",
                "allowed": "" if error is None else f"{r['tolerance']:.0e}",
            }
        )
    clock = {"cpu": "processor seconds", "wall": "wall clock"}[result["clock"]]
    cores, rounds = result["machine"]["cores"], result["rounds"]
    conditions = f"{cores} core{'s'[: cores != 1]}, {clock}, {rounds} round{'s'[: rounds != 1]}:"
    return f"{conditions}\n\n{table(rows)}"


def profile_table(records: list[Record]) -> str:
    """A row for each run, path and phase, with the parts that took a hundredth of it or more."""
    rows = []
    for r in records:
        for phase, found in r["phases"].items():
            parts = {**found["share"], "elsewhere": found["share_elsewhere"]}
            shown = ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share >= 0.01)
            time = f"{found['seconds']:.2f} s"
            rows.append({"run": r["run"], "path": r["path"], "phase": phase, "time": time, "of it": shown})
    return table(rows)


def roofline_tables(result: dict[str, Any]) -> dict[str, str]:
    """One table for each size, without and with the gradient, and the rates they rest on."""
    rates = {f"{p} matrix products": f"{rate:,.0f} GFLOP/s" for p, rate in result["peak_gflops"].items()}
    for size, rate in result["bandwidth_gigabytes_per_second"].items():
        rates[f"bandwidth within {int(size) / 2**20:g} MB"] = f"{rate:,.0f} GB/s"
    made = {"roofline rates": table([{"measured, one thread": name, "": rate} for name, rate in rates.items()])}
    for size in dict.fromkeys(r["size"] for r in result["records"]):
        for training in (False, True):
            records = [r for r in result["records"] if (r["size"], r["training"]) == (size, training)]
            made[f"roofline {size} {'training' if training else 'inference'}"] = table(roofline_rows(records))
    return made


def roofline_rows(records: list[Record]) -> list[dict[str, str]]:
    paths, rows = list(dict.fromkeys(r["path"] for r in records)), []
    for name in dict.fromkeys(r["name"] for r in records):
        own = {r["path"]: r for r in records if r["name"] == name}
        r = own[PLAIN]
        rows.append(
            {
                "core": " ".join(filter(None, (r["core"], r["mixing"]))),
                "multiply-adds": f"{r['operations'] // 2:,}",
                "bytes": megabytes(r["bytes"]),
                "eager bytes": megabytes(r["eager_bytes"]),
                "operations per byte": f"{r['intensity']:.0f}",
                "floor": f"{1000 * r['floor']:.2f} ms",
                **{path: milliseconds(own.get(path)) for path in paths},
            }
        )
    return rows


def megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MB"


def milliseconds(record: Record | None) -> str:
    """With how many times the floor that is."""
    if record is None or record["seconds"] is None:
        return ""
    return f"{1000 * record['seconds']:.2f} ms ({record['above_floor']:.1f})"


def figures(folder: Path) -> None:
    """The rooflines, without and with the gradient."""
    result = json.loads((folder / "roofline.json").read_text())
    figure, axes = panels(1, 2, (11, 4.2), sharey=True)
    marks = dict(zip(dict.fromkeys(r["path"] for r in result["records"]), "oxs^Dv", strict=False))
    fastest = max(result["bandwidth_gigabytes_per_second"].values())
    for axis, training in zip(axes, (False, True), strict=True):
        records = [r for r in result["records"] if r["training"] == training and r["seconds"]]
        span = [min(r["intensity"] for r in records) / 2, max(r["intensity"] for r in records) * 2]
        for (precision, peak), style in zip(result["peak_gflops"].items(), ("-", "--"), strict=True):
            xs = sorted({*span, min(max(peak / fastest, span[0]), span[1])})
            axis.plot(xs, [min(peak, x * fastest) for x in xs], f"k{style}", lw=1, label=f"limit, {precision}")
        for path, mark in marks.items():
            own = [r for r in records if r["path"] == path]
            rates = [r["operations"] / r["seconds"] / 1e9 for r in own]
            axis.scatter([r["intensity"] for r in own], rates, marker=mark, s=22, label=path, alpha=0.8)
        axis.set(xscale="log", yscale="log", xlabel="operations per byte that must move")
        axis.set_title("a segment" + (" with its gradient" if training else ""))
    axes[0].set_ylabel("GFLOP/s, one thread")
    axes[0].legend(fontsize=8)
    save(figure, folder / "roofline.png")
