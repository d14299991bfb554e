"""The recurrent cores on labelled puzzles: model and loss."""

from hrm_agent.supervised.losses import PuzzleLoss, puzzle_loss, stablemax_log_probabilities
from hrm_agent.supervised.model import PuzzleModel, load_published, model_from_published

__all__ = [
    "PuzzleLoss",
    "PuzzleModel",
    "load_published",
    "model_from_published",
    "puzzle_loss",
    "stablemax_log_probabilities",
]
