"""Small texts, and text models on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrm_agent.policies.policy import Policy
from hrm_agent.supervised import ModelConfig, build_model
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.tasks.base import TaskSpec
from hrm_agent.supervised.tasks.corpus import Stream, stream_of

CHARACTERS = "abcdefgh"
CONTEXT = 6
SPEC = TaskSpec(CONTEXT, 8, 8, alphabet=CHARACTERS)
OPTIONS: dict[str, Any] = {
    "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 16, "num_heads": 1, "cycle_gradient": "all",
}  # fmt: skip


def ascending(count: int, first: int = 0x100) -> str:
    """A text in which no character occurs twice, each greater than the one before: its id is its place."""
    return "".join(map(chr, range(first, first + count)))


def write_text(folder: Path, count: int = 400, seed: int = 0) -> Path:
    """A text of `CHARACTERS` in which one often follows the other."""
    random = np.random.default_rng(seed)
    steps = random.choice([1, 1, 1, 2, 5], size=count).cumsum() % len(CHARACTERS)
    path = folder / "text.txt"
    path.write_text("".join(CHARACTERS[step] for step in steps))
    return path


def make_stream(count: int = 300, works: int = 1, seed: int = 0) -> Stream:
    random = np.random.default_rng(seed)
    return stream_of([random.integers(0, 8, count // works, dtype=np.int32) for _ in range(works)])


def make_causal(core: str = "trm", mixing: str = "attention", seed: int = 0, **more: Any) -> PuzzleModel:
    """Its answers depend on the input."""
    torch.manual_seed(seed)
    own = OPTIONS if core == "trm" else {k: v for k, v in OPTIONS.items() if k in ("layers", "inner_size", "num_heads")}
    options = {**own, "mixing": mixing, "positions": "rope", "causal": True, **more}
    made = build_model(ModelConfig(core, options, 16), SPEC)
    assert isinstance(made, PuzzleModel)
    return made


def make_carried(carry: str = "gate", segments: int = 1, core: str = "trm", seed: int = 0, **more: Any) -> Policy:
    """Its logits depend on the state."""
    torch.manual_seed(seed)
    options = {**OPTIONS, "mixing": "conv"} if core == "trm" else {}
    made = build_model(ModelConfig(core, options, 16, carry=carry, segments=segments, **more), SPEC)
    assert isinstance(made, Policy)
    with torch.no_grad():
        made.policy_head.weight.normal_()
        for weight in made.carry.parameters():
            weight.normal_(std=0.3)
    return made
