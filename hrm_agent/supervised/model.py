"""A core between an embedding of puzzle tokens and its answers, as HRM and TRM train it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores import State, build_core
from hrm_agent.cores.base import check_at_least, check_choice, linear, truncated_normal_
from hrm_agent.parallel.threads import chunk_size
from hrm_agent.policies.encoders import EncoderConfig, GridEncoder
from hrm_agent.recurrence import Backend, run_segments

MODEL_POSITIONS = ("rope", "rope2d", "learned", "none")
HALTING_BIAS = -5.0
DEFAULT_SLOTS = {"hrm": 1, "trm": 16}
CROPPED_LOGIT = 1.0
"""Of answer 0, the others' being 0, at cells that no token holds. Give no labels there."""


class PuzzleModel(nn.Module):
    """Token embedding and puzzle prefix, one segment of a core, then answer and halting logits.

    Args:
        vocabulary_size: number of token ids, for inputs and for answers.
        sequence_length: tokens L of a puzzle.
        num_puzzles: number of puzzle identifiers.
        hidden_size: channels D.
        puzzle_embedding_size: numbers learned per puzzle; they fill the prefix from the front, the rest of
            it is zero. 0: no prefix.
        slots: tokens P of the prefix; where None, 1 for HRM and 16 for TRM.
        positions: `learned` (added to the embedding), or those of the core.
        grid: rows and columns of the puzzle, where it has them.
        answer_ids: number of ids of answers, where they are not those of the inputs.
        crop, patch_size: of a puzzle on a grid, see `hrm_agent.policies.encoders.EncoderConfig`: tokens that hold
            several cells, so that the core has fewer of them; the answers are still per cell. A ring that is
            cropped is answered by id 0.
        one_choice: an answer is one token and one id for it (`hrm_agent.supervised.tasks.base.TaskSpec.choices`), not
            an id for every token.
        core: name of the core (`hrm_agent.cores.build_core`).
        core_options: its further arguments.

    Raises:
        ValueError: a size below its minimum, a puzzle embedding larger than the prefix, an unknown choice, or
            `one_choice` on a grid that is cropped, where no choice could be made.
    """

    backend: Backend | None = None

    def __init__(
        self,
        *,
        vocabulary_size: int,
        sequence_length: int,
        num_puzzles: int,
        hidden_size: int,
        puzzle_embedding_size: int,
        slots: int | None = None,
        positions: str = "rope",
        grid: tuple[int, int] | None = None,
        answer_ids: int | None = None,
        crop: int = 0,
        patch_size: int = 1,
        one_choice: bool = False,
        core: str = "trm",
        core_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_at_least("vocabulary_size", vocabulary_size, 1)
        check_at_least("sequence_length", sequence_length, 1)
        check_at_least("num_puzzles", num_puzzles, 1)
        check_at_least("puzzle_embedding_size", puzzle_embedding_size, 0)
        check_choice("positions", positions, MODEL_POSITIONS)
        self.prefix = 0
        if puzzle_embedding_size:
            self.prefix = check_at_least("slots", DEFAULT_SLOTS.get(core, 1) if slots is None else slots, 1)
        self.padding = self.prefix * hidden_size - puzzle_embedding_size
        if self.padding < 0:
            raise ValueError(
                f"puzzle_embedding_size={puzzle_embedding_size} does not fit into slots={self.prefix} of "
                f"hidden_size={hidden_size}; give more slots or a smaller embedding"
            )
        self.one_choice = one_choice
        if one_choice and crop:
            raise ValueError(f"crop={crop}: the answer is a choice among all cells, cropped ones too; use crop=0")
        self.hidden_size = hidden_size
        self.scale = math.sqrt(hidden_size)
        answers = check_at_least("answer_ids", vocabulary_size if answer_ids is None else answer_ids, 1)
        self.answer_ids = answers
        self.patches = None
        if crop or patch_size != 1:
            self.patches = Patches(vocabulary_size, sequence_length, grid, hidden_size, crop, patch_size)
            sequence_length, grid = self.patches.encoder.length, self.patches.encoder.grid
            answers *= patch_size**2
        else:
            self.tokens = _embedding(vocabulary_size, hidden_size)
        length = self.prefix + sequence_length
        self.puzzles = nn.Embedding(num_puzzles, puzzle_embedding_size) if self.prefix else None
        if self.puzzles is not None:
            nn.init.zeros_(self.puzzles.weight)
        self.learned_positions = _embedding(length, hidden_size) if positions == "learned" else None
        options = dict(core_options or {})
        if core in ("hrm", "trm", "feedforward"):
            options["positions"] = "none" if positions == "learned" else positions
        self.core = build_core(core, hidden_size=hidden_size, length=length, grid=grid, **options)
        self.lm_head = linear(hidden_size, answers)
        self.halting_head = linear(hidden_size, 2, bias=True)
        nn.init.zeros_(self.halting_head.weight)
        nn.init.constant_(self.halting_head.bias, HALTING_BIAS)

    @property
    def chunk_size(self) -> int | None:
        """The fastest number of puzzles to run together on this device; None: as many as there are."""
        return chunk_size(self.core, self.core.length, self.lm_head.weight.device)

    def initial_state(self, batch_size: int) -> State:
        """The core's state before the first segment."""
        return self.core.initial_state(batch_size)

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """float[B, P + L, D]: prefix and tokens of a batch, see `forward`."""
        # Tokens of unit variance are scaled up below, as all else is.
        x = self.tokens(batch["inputs"]) if self.patches is None else self.patches(batch["inputs"]) / self.scale
        if self.puzzles is not None:
            prefix = F.pad(self.puzzles(batch["puzzle_identifiers"]), (0, self.padding))
            x = torch.cat([prefix.view(-1, self.prefix, self.hidden_size), x], dim=1)
        if self.learned_positions is not None:
            # The sum of two equal variances is brought back to one.
            x = (x + self.learned_positions.weight) * math.sqrt(0.5)
        return self.scale * x

    def forward(self, state: State, batch: Mapping[str, Tensor]) -> tuple[State, Tensor, Tensor, Tensor]:
        """Run one segment. Training takes one optimizer step on it and detaches the state it returns.

        Args:
            state: what `initial_state` or an earlier call returned.
            batch: `inputs` int[B, L]; `puzzle_identifiers` int[B].

        Returns:
            The new state, logits float[B, L, V] over the V answer ids, and the halting head's two logits of
            position 0, halt
            and continue, each float[B].
        """
        y, state = run_segments(self.core, self.embed(batch), state, 1, self.backend)
        q_halt, q_continue = self.halting_head(y[:, 0]).unbind(dim=-1)
        logits = self.lm_head(y[:, self.prefix :])
        return state, logits if self.patches is None else self.patches.unfold(logits), q_halt, q_continue


class Patches(nn.Module):
    """Tokens that each hold a square of cells, as the policy's do (`hrm_agent.policies.encoders.GridEncoder`).

    Raises:
        ValueError: the puzzle has no grid, or it has other cells than tokens.
    """

    def __init__(
        self,
        input_ids: int,
        sequence_length: int,
        grid: tuple[int, int] | None,
        hidden_size: int,
        crop: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        if grid is None or grid[0] * grid[1] != sequence_length:
            raise ValueError(
                f"crop={crop} and patch_size={patch_size} need a puzzle on a grid, but grid={grid} with "
                f"{sequence_length} tokens; use crop=0 and patch_size=1"
            )
        self.cells = grid
        space = gym.spaces.Box(0, input_ids - 1, grid, np.int64)
        self.encoder = GridEncoder(space, hidden_size, EncoderConfig(crop=crop, patch_size=patch_size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Ids int[B, H * W] -> tokens float[B, T, D]."""
        return self.encoder(inputs.view(-1, *self.cells))

    def unfold(self, logits: Tensor) -> Tensor:
        """Logits of tokens float[B, T, p * p * V] -> of cells float[B, H * W, V]; those of cropped cells say 0."""
        crop, p, (rows, cols) = self.encoder.crop, self.encoder.patch_size, self.encoder.grid or (0, 0)
        inside = (self.cells[0] - 2 * crop, self.cells[1] - 2 * crop)
        by_cell = logits.view(len(logits), rows, cols, p, p, -1).permute(0, 1, 3, 2, 4, 5)
        by_cell = by_cell.reshape(len(logits), rows * p, cols * p, -1)[:, : inside[0], : inside[1]]
        if crop:
            whole = by_cell.new_zeros(len(logits), *self.cells, by_cell.shape[-1])
            whole[..., 0] = CROPPED_LOGIT
            whole[:, crop : crop + inside[0], crop : crop + inside[1]] = by_cell
            by_cell = whole
        return by_cell.reshape(len(logits), self.cells[0] * self.cells[1], -1)


def _embedding(count: int, size: int) -> nn.Embedding:
    embedding = nn.Embedding(count, size)
    truncated_normal_(embedding.weight, size**-0.5)
    return embedding
