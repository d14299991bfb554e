"""The recurrent cores on labelled puzzles: model, loss, training and evaluation."""

from hrm_agent.supervised.files import ModelConfig, build_model, load_model, save_model
from hrm_agent.supervised.losses import PuzzleLoss, puzzle_loss, stablemax_cross_entropy
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.published import load_published, model_from_published

__all__ = [
    "ModelConfig",
    "PuzzleLoss",
    "PuzzleModel",
    "build_model",
    "load_model",
    "load_published",
    "model_from_published",
    "puzzle_loss",
    "save_model",
    "stablemax_cross_entropy",
]
