"""Where the records of studies and their runs lie; the functions are the package's own."""

from __future__ import annotations

from pathlib import Path

from hrm_agent.files.records import Record, load, locked, put, save, values_of

__all__ = ["ROOT", "RUNS", "Record", "load", "locked", "put", "save", "values_of"]

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "studies"
"""Folders of training runs; not in the repository."""
