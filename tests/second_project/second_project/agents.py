"""The agent that ships with this project."""

from pathlib import Path

TRAINED = Path(__file__).parent / "trained"


def corridor() -> Path:
    """Where its weights are."""
    return TRAINED
