"""Table, sample and figure of this page, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import mean_of
from experiments.engine.tables import EMPTY, table

ANCHOR = 1.88
"""Nats a character on the last tenth of tinyshakespeare, of the example for a laptop's CPU in nanoGPT's README."""
ANCHORED = "tinyshakespeare.txt"
TOP = 2.8
"""Bits at the figure's upper edge; what nothing is carried to is far above all others."""
STYLES = {"a window at once": "--", "carried": "-", "counts": ":"}


def tables(folder: Path) -> dict[str, str]:
    """Tables by the name of their marks."""
    records, arms = load(folder / "results.json"), settings_of(folder)["arms"]
    return {
        "language": table(rows_of(records, arms)),
        "language segments": table(segment_rows(records)),
        "language sample": sample_of(records),
    }


def runs_of(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records of every text and arm, the best arm of a text first."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["text"], record["agent"]), []).append(record)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], mean_of(run["nats"] for run in item[1]))))


def rows_of(records: Sequence[Record], arms: dict[str, dict]) -> list[dict[str, str]]:
    """One row a text and arm, means over seeds."""
    rows = []
    for (text, name), runs in runs_of(records).items():
        nats = [run["nats"] for run in runs]
        seconds = mean_of(run["seconds"] for run in runs) or 1.0
        rows.append(
            {
                "text": text,
                "model": f"`{name}`",
                "what": f"{arms[name]['form']}: {arms[name]['says']}" if name in arms else "",
                "nats a character": f"**{sum(nats) / len(nats):.3f}**",
                "each seed": " ".join(f"{value:.3f}" for value in nats),
                "validation": f"{mean_of(run['validation']['nats'] for run in runs):.3f}",
                "test [95% over windows, first seed]": with_windows(runs),
                "bits": f"{mean_of(run['bits'] for run in runs):.3f}",
                "perplexity": f"{math.exp(sum(nats) / len(nats)):.2f}",
                "parameters": f"{runs[0]['parameters']:,}",
                "characters read": f"{sum(run['tokens_read'] for run in runs) / len(runs) / 1e6:.1f} M",
                "processor seconds": f"{seconds:.0f}",
            }
        )
    return rows


def with_windows(runs: Sequence[Record]) -> str:
    """Nats on the test part, and the interval over its windows where it is known."""
    interval = runs[0]["test"].get("nats_ci95")
    ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"{mean_of(run['test']['nats'] for run in runs):.3f}{ends}"


def segment_rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """Bits on the test part by segments, of the arms that have several."""
    rows = []
    for (text, name), runs in runs_of(records).items():
        curves = [run["by_segments"] for run in runs if len(run.get("by_segments", ())) > 1]
        if curves:
            means = [sum(bits) / len(bits) for bits in zip(*curves, strict=True)]
            after = {f"after {s}": f"{bits:.3f}" for s, bits in enumerate(means, start=1)}
            rows.append({"text": text, "model": f"`{name}`", **after})
    columns = max(rows, key=len) if rows else {}
    return [{column: row.get(column, "") for column in columns} for row in rows]


def sample_of(records: Sequence[Record]) -> str:
    """What the best model of each text writes."""
    blocks, shown = [], set()
    for (text, name), runs in runs_of(records).items():
        written = [run["sample"] for run in runs if "sample" in run]
        if text not in shown and written:
            shown.add(text)
            blocks.append(f"`{name}`, {text}:\n\n```text\n{written[0].strip()}\n```")
    return "\n\n".join(blocks) or EMPTY


def figures(folder: Path) -> None:
    """Bits on validation windows against processor seconds, a panel a text."""
    records = load(folder / "results.json")
    texts = sorted({record["text"] for record in records})
    if not texts:
        return
    figure, axes = panels(1, len(texts), (8 * len(texts), 5), squeeze=False)
    for axis, text in zip(axes[0], texts, strict=True):
        for number, ((_, name), runs) in enumerate(
            (key, runs) for key, runs in runs_of(records).items() if key[0] == text
        ):
            style = STYLES.get(runs[0]["form"], "-")
            for run in runs:
                seconds, bits = zip(*run["curve"], strict=True)
                above = f", at {min(bits):.2f}: above the picture" if min(bits) > TOP else ""
                label = f"{name} ({runs[0]['form']}{above})" if run is runs[0] else None
                if len(seconds) == 1:
                    axis.axhline(bits[0], color="0.4", ls=style, lw=1.2, label=label)
                else:
                    axis.plot(seconds, bits, style, color=f"C{number % 10}", lw=1.4, alpha=0.8, label=label)
        if text == ANCHORED:
            axis.axhline(ANCHOR / math.log(2), color="k", lw=0.8, label="nanoGPT after 3 minutes, 1.88 nats")
        axis.set(
            xscale="log", xlabel="processor seconds of training", ylabel="bits a character, validation", title=text
        )
        axis.set_ylim(top=min(axis.get_ylim()[1], TOP))
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, ncols=2)
    save(figure, folder / "bits.png")
