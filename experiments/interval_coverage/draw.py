"""The table of coverages, from the JSON alone."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.engine.tables import table


def tables(folder: Path) -> dict[str, str]:
    result = json.loads((folder / "coverage.json").read_text())
    rows = []
    for record in result["records"]:
        found = record["intervals"]
        cells = {name: f"{of['covers']:.3f} ({of['width']:.3f})" for name, of in found.items()}
        row = {"world": record["world"], "success": f"{record['success']:.3f}", "seeds": str(record["seeds"])}
        rows.append({**row, **{f"{name}, covers (width)": cell for name, cell in cells.items()}})
    return {"coverage": table(rows)}
