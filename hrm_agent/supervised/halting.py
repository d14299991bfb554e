"""When a puzzle halts at inference, and how that is chosen on validation puzzles.

The published rule halts where the halting head gives an answer more than an even chance. A puzzle's confidence rises
over segments, so it mostly halts barely above one half, and nearly half of such answers are wrong: a TRM that solves
0.95 of its puzzles after all segments then keeps 0.72. Waiting until the answer stands, or for more confidence, costs a
segment or two and keeps them. Which of it suits a model is measured after every validation, and stored with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hrm_agent.names.values import DepthOrNone, check_fields, one_of
from hrm_agent.supervised.tasks.base import Answers

HALTINGS = ("halt_only", "q_learning")
Halting = Annotated[str, one_of(HALTINGS)]
Logit = Annotated[float, Meta(ge=-100, le=100)]
PROBABILITIES = (0.5, 0.7, 0.9, 0.95, 0.99)
PATIENCES = (0, 1, 2, 3)
TOLERANCE = 0.005
"""Share of puzzles that a rule may lose for fewer segments."""


@dataclass(frozen=True)
class HaltingRule:
    """A puzzle halts after the first segment at which both of these hold.

    Attributes:
        head: whose margin is compared: `halt_only`, that of `q_halt`; `q_learning`, of `q_halt` over `q_continue`.
        threshold: the margin, a logit, is above it; 0 is one half, as published.
        patience: the answer has not changed for so many segments; 0: it need not stand, as published.

    Raises:
        ValueError: an unknown head, or a number out of range.
    """

    head: Halting = "halt_only"
    threshold: Logit = 0.0
    patience: DepthOrNone = 0

    def __post_init__(self) -> None:
        check_fields(self, "halting_rule")

    @property
    def is_published(self) -> bool:
        return self.threshold == 0 and self.patience == 0

    def over(self, q_halt: NDArray, q_continue: NDArray | None, stood: NDArray) -> NDArray:
        """Whether puzzles halt: of two logits and the segments for which answers have stood, arrays of one shape."""
        least: Any = self.threshold
        if self.head == "q_learning":
            assert q_continue is not None
            least = q_continue + np.float32(self.threshold)
        return (q_halt > least) & (stood >= self.patience)

    def __str__(self) -> str:
        probability = 1 / (1 + np.exp(-self.threshold))
        about = "a right answer" if self.head == "halt_only" else "halting to be better than continuing"
        sure = f"the halting head's probability of {about} is above {probability:.2g}"
        if not self.patience:
            return sure
        stood = "one segment" if self.patience == 1 else f"{self.patience} segments"
        return f"the answer has stood for {stood}, and {sure}"


def candidates(head: str) -> list[HaltingRule]:
    """The rules that are tried, the published one first."""
    logits = [float(np.log(p / (1 - p))) for p in PROBABILITIES]
    return [HaltingRule(head, logit, patience) for patience in PATIENCES for logit in logits]


def standing(answers: NDArray) -> NDArray:
    """For how many segments each answer has stood: int64 `[S, N]` of int `[S, N, L]`, 0 where it has just changed."""
    stood = np.zeros(answers.shape[:2], np.int64)
    for segment in range(1, len(answers)):
        same = (answers[segment] == answers[segment - 1]).all(-1)
        stood[segment] = np.where(same, stood[segment - 1] + 1, 0)
    return stood


def halt_early(answers: Answers, rule: HaltingRule, one_choice: bool = False) -> Answers:
    """Answers as they would be if puzzles halted by a rule, from those after every segment.

    Args:
        one_choice: an answer is the first entry of its row (`hrm_agent.supervised.tasks.base.TaskSpec.choices`).
    """
    at = halting_segments(answers, [rule], one_choice)[0]
    rows = np.arange(len(at))
    return Answers(answers.tokens[at, rows][None], answers.q_halt[at, rows][None], at + 1)


def halting_segments(answers: Answers, rules: Sequence[HaltingRule], one_choice: bool = False) -> list[NDArray]:
    """Of each rule the segment at which each puzzle halts, from 0, int64 `[N]`; the last where it never does."""
    stood = standing(answers.tokens[..., :1] if one_choice else answers.tokens)
    found = []
    for rule in rules:
        over = rule.over(answers.q_halt, answers.q_continue, stood)
        found.append(np.where(over.any(0), over.argmax(0), len(over) - 1))
    return found


def choose_rule(answers: Answers, right: NDArray, head: str, one_choice: bool = False) -> HaltingRule:
    """The rule with the fewest segments among those that lose no more than `TOLERANCE` of the best score.

    The best score is that of the best candidate or of all segments, whichever is higher; where no candidate comes
    near it, the one with the highest score is taken.

    Args:
        answers: to validation puzzles, after every segment.
        right: bool `[S, N]`, whether they are right.
        head: see `HaltingRule`.
    """
    rules = candidates(head)
    at, rows = halting_segments(answers, rules, one_choice), np.arange(right.shape[1])
    scores = np.array([right[a, rows].mean() for a in at])
    segments = np.array([a.mean() for a in at])
    wanted = min(max(scores.max(), right[-1].mean()) - TOLERANCE, scores.max())
    enough = np.flatnonzero(scores >= wanted - 1e-9)
    return rules[int(min(enough, key=lambda i: (segments[i], -scores[i])))]
