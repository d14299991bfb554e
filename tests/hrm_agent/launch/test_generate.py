"""What a text model writes: the same as by reading anew, token by token; reproducible, and printed as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import run_command
from hrm_agent.launch.generate import StepReader, WindowReader, choose, generate
from hrm_agent.policies.policy import Policy
from hrm_agent.supervised import ModelConfig, build_model, save_model
from hrm_agent.supervised.losses import log_probabilities
from hrm_agent.supervised.tasks.base import TaskSpec
from puzzles import SPEC as PUZZLES
from puzzles import TRM
from refusals import refusal
from texts import CHARACTERS, CONTEXT, OPTIONS, SPEC, make_carried, make_causal

CAUSAL = {**OPTIONS, "mixing": "attention", "positions": "rope", "causal": True}
CARRIED = {**OPTIONS, "mixing": "conv"}


def save(folder: Path, carry: str | None = "gate", spec: TaskSpec = SPEC, **options: object) -> Path:
    """A text model whose answers are far from uniform."""
    torch.manual_seed(0)
    config = ModelConfig("trm", {**(CAUSAL if carry is None else CARRIED), **options}, 16, carry=carry)
    model = build_model(config, spec)
    with torch.no_grad():
        (model.policy_head if isinstance(model, Policy) else model.lm_head).weight.normal_()
    save_model(folder, model, config, spec)
    (folder / "model.json").write_text(json.dumps({"cross_entropy": "softmax", "max_segments": 2}))
    return folder


@torch.no_grad()
def test_steps_are_read_as_the_policy_reads_them() -> None:
    policy, tokens = make_carried("gate", segments=2), [1, 5, 2, 7, 0, 3]
    begins = torch.zeros(len(tokens), 1, dtype=torch.bool)
    begins[0] = True
    expected = policy.unroll(torch.tensor(tokens)[:, None], policy.initial_state(1), begins).logits[:, 0]
    reader = StepReader(policy)
    found = [reader(tokens[:3]), reader(tokens[3:4]), reader(tokens[4:])]
    torch.testing.assert_close(torch.stack(found), expected[[2, 3, 5]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_windows_slide_and_what_is_behind_the_last_token_does_not_matter() -> None:
    model, tokens = make_causal(), [1, 5, 2, 7, 0, 3, 4, 6, 1]
    reader = WindowReader(model, 3)
    for end in (2, 5, 6, 9):
        seen = tokens[max(0, end - CONTEXT) : end]
        padded = [*seen, *[3] * (CONTEXT - len(seen))]
        state, batch = model.initial_state(1), {"inputs": torch.tensor([padded])}
        for _ in range(3):
            state, logits, _, _ = model(state, {**batch, "puzzle_identifiers": torch.zeros(1, dtype=torch.int64)})
        found = reader(tokens[len(reader.seen) if end <= CONTEXT else end - 3 : end])
        torch.testing.assert_close(found, logits[0, len(seen) - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("carry", ["gate", None])
@torch.no_grad()
def test_the_most_probable_text(carry: str | None, tmp_path: Path) -> None:
    """Against a model that reads everything anew for each token."""
    folder = save(tmp_path, carry)
    written = "".join(generate(str(folder), prompt="abc", length=8, temperature=0))
    torch.manual_seed(0)
    model = build_model(ModelConfig("trm", CAUSAL if carry is None else CARRIED, 16, carry=carry), SPEC)
    with torch.no_grad():
        (model.policy_head if isinstance(model, Policy) else model.lm_head).weight.normal_()
    text = "abc"
    for _ in range(8):
        ids = torch.tensor([CHARACTERS.index(c) for c in text])
        if isinstance(model, Policy):
            begins = torch.zeros(len(ids), 1, dtype=torch.bool)
            begins[0] = True
            logits = model.unroll(ids[:, None], model.initial_state(1), begins).logits[-1, 0]
        else:
            logits = WindowReader(model, 2)(ids.tolist())
        text += CHARACTERS[int(logits.argmax())]
    assert written == text


def test_equal_seeds_write_equal_texts_and_others_do_not(tmp_path: Path) -> None:
    folder = str(save(tmp_path))
    one, same, other = ("".join(generate(folder, length=60, temperature=2, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(one) == 60  # an empty prompt is not printed
    assert set(one) <= set(CHARACTERS)


def test_tokens_are_drawn_with_their_probabilities_raised_to_a_power() -> None:
    logs = log_probabilities(torch.tensor([0.0, 1.0, 2.0]), "softmax")
    for temperature in (0.5, 1.0, 3.0):
        generator = torch.Generator().manual_seed(0)
        drawn = np.bincount([choose(logs, temperature, generator) for _ in range(4000)], minlength=3) / 4000
        expected = np.exp(np.arange(3) / temperature)
        assert np.abs(drawn - expected / expected.sum()).max() < 0.03
    assert choose(logs, 0, torch.Generator()) == 2


def test_text_comes_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = generate(str(save(tmp_path)), prompt="ab", length=10**9)
    assert isinstance(pieces, Iterator)
    assert next(pieces) == "ab"
    assert all(len(next(pieces)) == 1 for _ in range(5))


def test_bytes_become_text(tmp_path: Path) -> None:
    folder = save(tmp_path, spec=TaskSpec(CONTEXT, 256, 256, alphabet=""))
    written = "".join(generate(str(folder), prompt="é", length=50, temperature=1))
    assert written.startswith("é")
    assert len(written.encode("utf-8", "replace")) >= 50


def test_a_prefix_takes_no_place_in_the_window(tmp_path: Path) -> None:
    config = ModelConfig("trm", CAUSAL, 16, puzzle_embedding_size=16, slots=2)
    save_model(tmp_path, build_model(config, SPEC), config, SPEC)
    written = "".join(generate(str(tmp_path), prompt="abc", length=CONTEXT + 3))
    assert len(written) == 3 + CONTEXT + 3


def test_an_alphabet_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    spec = TaskSpec(CONTEXT, len(CHARACTERS), len(CHARACTERS), alphabet=CHARACTERS[:-1])
    config = ModelConfig("trm", CARRIED, 16, carry="gate")
    save_model(tmp_path, build_model(config, spec), config, spec)
    with pytest.raises(ValueError, match="expected sizes"):
        next(generate(str(tmp_path)))


def test_a_terminal_gets_no_control_characters_of_a_model_s_alphabet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = "\x1b]\x07\n\tab\x9b"
    folder = save(tmp_path, spec=TaskSpec(CONTEXT, len(strange), len(strange), alphabet=strange))
    run_command(monkeypatch, "generate", f"model={folder}", "length=300", "temperature=5")
    printed = capsys.readouterr().out
    assert {"\\x1b", "\\x07", "\n", "\t"} <= {printed[i : i + 4] if c == "\\" else c for i, c in enumerate(printed)}
    assert all(c.isprintable() or c in "\n\t" for c in printed)


def test_the_command_prints_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path)
    run_command(monkeypatch, "generate", f"model={folder}", "prompt=abc", "length=20", "seed=3")
    assert capsys.readouterr().out == "".join(generate(str(folder), "abc", 20, seed=3)) + "\n"


BAD = [
    ("model=nothing", "model=nothing: no such file or folder"),
    ("model=text prompt=xyz", "prompt='xyz': characters that the model does not know: 'xyz'; it knows 'abcdefgh'"),
    ("model=puzzle", "model=puzzle: answers puzzles, not texts; expected a run of supervise task=text"),
    ("model=empty", "no puzzle model there"),
    ("model=open", "its tokens see those that follow; expected one with core.causal=true"),
    ("model=text length=0", "length=0: expected an integer from 1"),
    ("model=text temperature=-1", "temperature=-1: expected a number, 0 or more"),
    ("model=text seed=-1", "seed=-1: expected an integer from 0"),
    ("model=text temprature=1", "did you mean temperature?"),
    ("prompt=abc", "model=... is required"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[a for a, _ in BAD])
def test_bad_input_is_refused_in_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "text")
    save(tmp_path / "open", carry=None, causal=False)
    config = ModelConfig("trm", TRM, 8)
    save_model(tmp_path / "puzzle", build_model(config, PUZZLES), config, PUZZLES)
    (tmp_path / "empty").mkdir()
    assert message in refusal(monkeypatch, capsys, "generate", arguments.split(), tmp_path)
