"""LSTM and GRU of `torch.nn`, trained as the carried policies are: the same readers, windows, optimizer and scores.

`Recurrent` has of a policy what `hrm_agent.supervised.streams` uses, and reads a window in one call of torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.language.ngram import SAMPLE
from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised.deep_supervision import SupervisedConfig
from hrm_agent.supervised.evaluation import evaluate_model
from hrm_agent.supervised.streams import LANES, StreamLearner, StreamSolver
from hrm_agent.supervised.tasks.text import TextTask

KINDS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
POINTS = 12
"""Evaluations over a run, and one at its end."""
VALIDATED = 400
"""Windows of each but the last."""


class Reading(NamedTuple):
    """Logits float `[k, B, V]`, and the state after the last step."""

    logits: Tensor
    state: tuple[Tensor, ...]


class Recurrent(nn.Module):
    """Embedding, one or more layers of `torch.nn`, logits.

    Args:
        kind: `lstm` or `gru`.
        ids: V.
        embedding, hidden: sizes.
        layers: their number.
    """

    segments = 1

    def __init__(self, kind: str, ids: int, embedding: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(ids, embedding)
        self.rnn = KINDS[kind](embedding, hidden, layers)
        self.head = nn.Linear(hidden, ids)
        self.fields = 2 if kind == "lstm" else 1
        if kind == "lstm":
            with torch.no_grad():  # forget gates begin open (Jozefowicz et al. 2015)
                for name, bias in self.rnn.named_parameters():
                    if name.startswith("bias_ih"):
                        bias[hidden : 2 * hidden] = 1.0

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def slices(self, threads: Threads, rows: int) -> list[slice]:
        return threads.slices(rows)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros, `[B, layers, hidden]` each."""
        shape = (batch_size, self.rnn.num_layers, self.rnn.hidden_size)
        return tuple(torch.zeros(shape, device=self.device) for _ in range(self.fields))

    def unroll(self, tokens: Tensor, state: tuple[Tensor, ...], begins: Tensor) -> Reading:
        """A window: tokens int `[k, B]`; where `begins` bool `[k, B]` is true the state is zero before the step."""
        parts, edges = [], [0, *(t for t in range(1, len(tokens)) if begins[t].any()), len(tokens)]
        x = self.tokens(tokens.long())
        for first, end in itertools.pairwise(edges):
            keep = ~begins[first].view(-1, 1, 1)
            before = [(s * keep).transpose(0, 1).contiguous() for s in state]
            y, after = self.rnn(x[first:end], tuple(before) if self.fields == 2 else before[0])
            state = tuple(s.transpose(0, 1) for s in (after if self.fields == 2 else (after,)))
            parts.append(y)
        return Reading(self.head(torch.cat(parts)), state)


def train(
    task: TextTask, kind: str, sizes: dict[str, int], training: SupervisedConfig, seed: int, seconds: float
) -> tuple[StreamLearner, float, list[list[float]]]:
    """A model trained for so many processor seconds of one thread, its learner, and validation bits by seconds."""
    torch.manual_seed(seed)
    model: Any = Recurrent(kind, task.spec.input_ids, **sizes)
    threads = Threads(1)
    learner = StreamLearner(model, training, task.stream("train"), task.context, seed, threads)
    spent = 0.0
    curve: list[list[float]] = []
    while spent < seconds:
        began = time.process_time()
        learner.step(spent / seconds)
        spent += time.process_time() - began
        if spent >= seconds * (len(curve) + 1) / (POINTS + 1):
            curve.append([round(spent, 1), score(learner, task, "validation", LANES, VALIDATED)["bits"]])
    return learner, spent, curve


def score(learner: StreamLearner, task: TextTask, split: str, lanes: int = 1, windows: int = 10**9) -> dict[str, Any]:
    """Scores of the averaged weights on the first windows of a part."""
    with learner.averaged() as model:
        solver = StreamSolver(model, 1, task.begins(split), learner.config.cross_entropy, lanes)
        return evaluate_model(solver, task, split, windows)


@torch.no_grad()
def write_on(model: Any, prompt: list[int], length: int, seed: int = 0, temperature: float = 0.8) -> list[int]:
    """Tokens drawn one after the other."""
    generator, state = torch.Generator().manual_seed(seed), model.initial_state(1)
    made, tokens, begins = [], prompt, True
    for _ in range(length):
        starts = torch.zeros(len(tokens), 1, dtype=torch.bool)
        starts[0], begins = begins, False
        read = model.unroll(torch.tensor(tokens)[:, None], state, starts)
        state = read.state
        chances = (read.logits[-1, 0] / temperature).softmax(-1)
        tokens = [int(torch.multinomial(chances, 1, generator=generator))]
        made += tokens
    return made


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--text", help="a file; the default corpus without")
    parser.add_argument("--out", type=Path, required=True, help="file of the result, JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=360, help="of processor time")
    parser.add_argument("--settings", type=json.loads, required=True, help="context, sizes and training, JSON")
    return parser


def main() -> None:
    given = arguments().parse_args()
    settings = given.settings
    task = TextTask(path=given.text, context=settings.get("context", 64))
    training = SupervisedConfig(**settings["training"])
    learner, spent, curve = train(task, given.kind, settings["sizes"], training, given.seed, given.seconds)
    scores = {split: score(learner, task, split) for split in ("validation", "test")}
    curve.append([round(spent, 1), scores["validation"]["bits"]])
    prompt = task.alphabet.encode(task.alphabet.beginning()).tolist()
    with learner.averaged() as model:
        written = write_on(model, prompt, SAMPLE, given.seed)
        parameters = sum(p.numel() for p in model.parameters())
    decoder = task.alphabet.decoder()
    result = {
        "parameters": parameters,
        "steps": learner.steps,
        "tokens_read": learner.steps * training.batch_size * task.context,
        "seconds": round(spent, 1),
        "scores": scores,
        "curve": curve,
        "sample": "".join(map(decoder.decode, written)),
    }
    given.out.write_text(json.dumps(result) + "\n")
    print(f"{scores['validation']['bits']:.3f} bits on validation, {scores['test']['bits']:.3f} on test")


if __name__ == "__main__":
    main()
