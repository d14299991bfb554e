"""Where the numbers of the authors' own code lie; a test that needs them says so where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HRM_AGENT_PARITY", ROOT.parent / "shared" / "parity"))
PUBLISHED = sorted(FOLDER.glob("*.safetensors"))
needs_published = pytest.mark.skipif(
    not PUBLISHED, reason=f"no parity files in {FOLDER}; set HRM_AGENT_PARITY to their folder"
)
