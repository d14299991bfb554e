"""A text model writes on from a prompt, one token after the other (`python -m hrm_agent.generate`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hrm_agent.names.values import Many, NonNegative, Seed
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.supervised.files import find_model, load_model_and_spec, read_info
from hrm_agent.supervised.kernel_work import choose_for_solving
from hrm_agent.supervised.losses import log_probabilities
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.streams import AT_ONCE
from hrm_agent.supervised.tasks.corpus import Alphabet


class Reader(Protocol):
    """Reads tokens and says what may follow."""

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Logits float `[V]` of the token that follows these, which follow those of earlier calls."""


class StepReader:
    """One token a step, the latent carried over all of them.

    Args:
        policy: see `hrm_agent.supervised.streams.build_stream_policy`.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.state, self.begins = policy, policy.initial_state(1), True

    @torch.no_grad()
    def __call__(self, tokens: Sequence[int]) -> Tensor:
        text = torch.tensor(tokens)[:, None]
        for window in text.split(AT_ONCE):
            begins = torch.zeros(window.shape, dtype=torch.bool)
            begins[0] = self.begins
            decision = self.policy.unroll(window, self.state, begins)
            self.state, self.begins = decision.state, False
        return decision.logits[-1, 0]


class WindowReader:
    """A whole window at once: the last tokens as far as it reaches; each call begins anew.

    Args:
        model: with a causal core, so that what stands behind the last token does not matter.
        segments: run on each window.
    """

    def __init__(self, model: PuzzleModel, segments: int) -> None:
        self.model, self.segments, self.window = model, segments, model.answer_length
        self.seen: list[int] = []

    @torch.no_grad()
    def __call__(self, tokens: Sequence[int]) -> Tensor:
        self.seen = [*self.seen, *tokens][-self.window :]
        filled = [*self.seen, *[0] * (self.window - len(self.seen))]
        batch = {"inputs": torch.tensor([filled]), "puzzle_identifiers": torch.zeros(1, dtype=torch.int64)}
        state = self.model.initial_state(1)
        for _ in range(self.segments):
            state, logits, _, _ = self.model(state, batch)
        return logits[0, len(self.seen) - 1]


def generate(
    model: str,
    prompt: str = "",
    length: Many = 500,
    temperature: NonNegative = 0.8,
    seed: Seed = 0,
    best: bool = True,
) -> Iterator[str]:
    """The prompt, and what a model writes on, piece by piece as it is drawn; equal arguments give equal texts.

    Args:
        model: run, folder or file of a model that `hrm_agent.supervise` trained with `task=text` or
            `task=text_carried`.
        prompt: text to go on from; empty: a line break.
        length: characters to write, or bytes where the text is read as bytes.
        temperature: probabilities are raised to the power of 1 / temperature; 0: always the most probable token.
        seed: of the draws.
        best: of a run's models, the best on the validation part rather than the last.

    Raises:
        ValueError: at once: no text model there, or a prompt with characters that it does not know.
    """
    reader, alphabet, cross_entropy = open_reader(Path(model), best)
    try:
        tokens = alphabet.encode(prompt or alphabet.beginning()).tolist()
    except ValueError as error:
        raise ValueError(f"prompt={prompt!r:.60}: {error}") from None
    return _write(reader, alphabet, cross_entropy, prompt, tokens, length, temperature, seed)


def _write(
    reader: Reader,
    alphabet: Alphabet,
    cross_entropy: str,
    prompt: str,
    tokens: Sequence[int],
    length: int,
    temperature: float,
    seed: int,
) -> Iterator[str]:
    generator, decoder = torch.Generator().manual_seed(seed), alphabet.decoder()
    if prompt:
        yield prompt
    for _ in range(length):
        chosen = choose(log_probabilities(reader(tokens), cross_entropy), temperature, generator)
        tokens = [chosen]
        if piece := decoder.decode(chosen):
            yield piece
    if rest := decoder.end():
        yield rest


def choose(log_probs: Tensor, temperature: float, generator: torch.Generator) -> int:
    """A token from logarithms of probabilities float `[V]`."""
    if temperature == 0:
        return int(log_probs.argmax())
    scaled = log_probs.double() / temperature
    return int(torch.multinomial((scaled - scaled.max()).exp(), 1, generator=generator))


def open_reader(path: Path, best: bool = True) -> tuple[Reader, Alphabet, str]:
    """What reads with a text model, its alphabet, and the cross-entropy that it was trained with.

    Raises:
        ValueError: no text model there, or a damaged file.
    """
    if not path.exists():
        raise ValueError(f"model={path}: no such file or folder")
    file = find_model(path, best)
    model, spec = load_model_and_spec(file)
    if spec.alphabet is None:
        raise ValueError(f"model={path}: answers puzzles, not texts; expected a run of supervise task=text")
    info = read_info(file.parent)
    Threads(1)
    choose_for_solving(model, "auto", 1, "float32", info)
    cross_entropy = info.get("cross_entropy") or "softmax"
    if isinstance(model, Policy):
        return StepReader(model), Alphabet(spec.alphabet), cross_entropy
    if not model.core.causal:
        raise ValueError(f"model={path}: its tokens see those that follow; expected one with core.causal=true")
    return WindowReader(model, info.get("max_segments", 1)), Alphabet(spec.alphabet), cross_entropy
