"""The parity command, the published names, and the supervised model and loss that it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrm_agent.algos.dqn import DQN, DQNConfig
from hrm_agent.benchmarks.parity import TOLERANCE, Errors, compare_file, main, published_policy
from hrm_agent.experience.replay import Replay
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.supervised import (
    PuzzleModel,
    load_published,
    model_from_published,
    puzzle_loss,
    stablemax_cross_entropy,
)
from hrm_agent.supervised.published import name_from_published
from published_files import PUBLISHED, needs_published

CONFIGS: dict[str, dict[str, Any]] = {
    "hrm": {"kind": "hrm", "H_layers": 1, "pos_encodings": "rope"},
    "hrm-learned": {"kind": "hrm", "H_layers": 1, "pos_encodings": "learned"},
    "trm": {"kind": "trm", "H_layers": 0, "pos_encodings": "rope", "puzzle_emb_len": 3, "mlp_t": False},
    "trm-mlp": {"kind": "trm", "H_layers": 0, "pos_encodings": "none", "puzzle_emb_len": 3, "mlp_t": True},
    "hrm_agent": {"kind": "hrm_agent", "H_layers": 1, "pos_encodings": "rope", "halt_max_steps": 2},
}
COMMON = {
    "L_layers": 1,
    "H_cycles": 2,
    "L_cycles": 1,
    "num_heads": 2,
    "hidden_size": 8,
    "expansion": 4,
    "vocab_size": 6,
    "seq_len": 5,
    "puzzle_emb_ndim": 8,
    "num_puzzle_identifiers": 2,
    "segments": 2,
}
BATCH = 2


def published_name(ours: str) -> str:
    """The inverse of `name_from_published`, written down a second time."""
    name = ours
    for pattern, published in (
        (r"^tokens\.weight", "embed_tokens.embedding_weight"),
        (r"^learned_positions\.weight", "embed_pos.embedding_weight"),
        (r"^puzzles\.weight", "puzzle_emb.weights"),
        (r"^halting_head", "q_head"),
        (r"^core\.z_([HL])_init", r"\1_init"),
        (r"^core\.net", "L_level"),
        (r"^core\.([HL])_net", r"\1_level"),
        (r"mixer\.swiglu\.(gate_up|down)", r"mlp_t.\1_proj"),
        (r"mlp\.(gate_up|down)\.", r"mlp.\1_proj."),
        (r"mixer\.qkv", "self_attn.qkv_proj"),
        (r"mixer\.out", "self_attn.o_proj"),
    ):
        name = re.sub(pattern, published, name)
    return "inner." + name


def random_model(config: dict[str, Any]) -> PuzzleModel:
    """A model all of whose weights, heads and puzzle embedding included, are away from zero."""
    torch.manual_seed(0)
    model = model_from_published(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_reference(path: Path, variant: str) -> Path:
    """A small parity file made by our own model: it shows that differences are found, not who is right."""
    config = {**COMMON, **CONFIGS[variant]}
    model = random_model(config)
    tensors = {f"weights/{published_name(name)}": t.clone() for name, t in model.state_dict().items()}
    inputs = torch.randint(0, 6, (BATCH, 5))
    if variant == "hrm_agent":
        tensors |= agent_numbers(model, inputs)
    else:
        tensors |= puzzle_numbers(model, inputs)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"config": json.dumps(config)})
    return path


def puzzle_numbers(model: PuzzleModel, inputs: Tensor) -> dict[str, Tensor]:
    batch = {"inputs": inputs, "puzzle_identifiers": torch.tensor([0, 1])}
    labels = torch.randint(0, 6, inputs.shape)
    labels[0, 2] = -100
    state, numbers = model.initial_state(BATCH), {"labels": labels, **batch}
    for n in range(2):
        state, logits, q_halt, q_continue = model(state, batch)
        if n == 0:
            loss = puzzle_loss(logits, q_halt, labels)
            loss.total.backward()
        values = {"z_H": state[0], "z_L": state[1], "logits": logits}
        values |= {"q_halt_logits": q_halt, "q_continue_logits": q_continue}
        numbers |= {f"segment{n}/{name}": value.detach() for name, value in values.items()}
    numbers |= {"loss/stablemax": loss.answers.detach(), "loss/q_halt": loss.q_halt.detach()}
    for name, parameter in model.named_parameters():
        if name != "puzzles.weight":
            assert parameter.grad is not None
            numbers[f"grad/{published_name(name)}"] = parameter.grad
    return numbers


@torch.no_grad()
def agent_numbers(model: PuzzleModel, inputs: Tensor) -> dict[str, Tensor]:
    numbers: dict[str, Tensor] = {}
    length = inputs.shape[1] + model.prefix
    fresh = [z[:, 0] for z in model.initial_state(BATCH)]
    seeds = fresh
    for t in range(3):
        if t == 2:
            seeds = [torch.stack([new[0], old[1]]) for new, old in zip(fresh, seeds, strict=True)]
        state = tuple(seed[:, None].expand(-1, length, -1) for seed in seeds)
        batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(BATCH, dtype=torch.long)}
        for _ in range(2):
            state, logits, _, _ = model(state, batch)
        seeds = [z[:, -1] for z in state]
        numbers |= {f"step{t}/inputs": inputs.clone(), f"step{t}/q_values": logits[:, -1, :4]}
        numbers |= {f"step{t}/next_seed_h": seeds[0], f"step{t}/next_seed_l": seeds[1]}
    return numbers


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """Copy a file after `change(tensors)` has edited its tensors in place."""
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, target, metadata)
    return target


@needs_published
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_numbers_are_reproduced(path: Path) -> None:
    assert compare_file(path).largest <= TOLERANCE


@pytest.mark.thorough
@needs_published
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
@pytest.mark.parametrize("part", ["down_proj", "_init", "lm_head", "embed_tokens"])
def test_one_changed_weight_of_a_published_file_is_found(path: Path, part: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        name = next(n for n in tensors if n.startswith("weights/") and part in n)
        token = tensors.get("inputs", tensors.get("step0/inputs", torch.zeros(1, 1)))[0, 0].long()
        index = int(token) * tensors[name].shape[1] if part == "embed_tokens" else 0
        tensors[name].view(-1)[index] += 0.01

    assert main([str(rewrite(path, tmp_path / path.name, change))]) == 1


@pytest.mark.parametrize("variant", CONFIGS)
def test_an_own_file_agrees_and_its_groups_are_printed(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_reference(tmp_path / "own.safetensors", variant)
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    groups = ["z_H", "z_L", "logits", "q_halt", "q_continue", "loss", "grad/L_level", "grad/lm_head"]
    for group in ["q_values", "seed_h", "seed_l"] if variant == "hrm_agent" else groups:
        assert re.search(rf"^  {group} +\d", printed, re.MULTILINE), group
    assert "agrees" in printed


@pytest.mark.thorough
@pytest.mark.parametrize("variant", CONFIGS)
def test_any_changed_number_is_found(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_reference(tmp_path / "own.safetensors", variant)
    with safe_open(path, framework="pt") as file:
        names = [n for n in file.keys() if file.get_tensor(n).is_floating_point()]  # noqa: SIM118
    # What an agent's Q-values and seeds do not depend on: halting, and answers other than the four actions.
    names = [n for n in names if variant != "hrm_agent" or "q_head" not in n]
    for name in names:

        def change(tensors: dict[str, Tensor], name: str = name) -> None:
            tensors[name].view(-1)[:32].add_(0.02)

        assert main([str(rewrite(path, tmp_path / "changed.safetensors", change))]) == 1, name
    assert "DIFFERS" in capsys.readouterr().out


def test_a_number_that_is_not_one_is_found(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "own.safetensors", "trm")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["segment1/logits"][0, 0, 0] = torch.nan

    assert main([str(rewrite(path, path.with_name("nan.safetensors"), change))]) == 1
    errors = Errors()
    errors.compare("x", torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert errors.largest == torch.inf


def test_one_bad_file_among_good_ones_decides(tmp_path: Path) -> None:
    good = write_reference(tmp_path / "good.safetensors", "trm")
    bad = rewrite(good, tmp_path / "bad.safetensors", lambda t: t["weights/inner.lm_head.weight"].mul_(1.1))
    assert main([str(bad), str(good)]) == 1
    assert main([str(good), str(bad)]) == 1


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


UNUSABLE = {
    "segment1/z_L": drop("segment1/z_L"),
    "labels": drop("labels"),
    "loss/q_halt": drop("loss/q_halt"),
    "grad/inner.lm_head.weight": drop("grad/inner.lm_head.weight"),
    "lm_head.weight": drop("weights/inner.lm_head.weight"),
    "inner.surplus": lambda tensors: tensors.update({"weights/inner.surplus": torch.zeros(1)}),
    "shape": lambda tensors: tensors.update({"weights/inner.lm_head.weight": torch.zeros(1)}),
    "index out of range": lambda tensors: tensors["inputs"].add_(100),
    "logits": lambda tensors: tensors.update({"segment0/logits": torch.zeros(1)}),
}


@pytest.mark.parametrize("named", UNUSABLE)
def test_an_incomplete_file_is_refused_in_one_line(
    named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_reference(tmp_path / "own.safetensors", "trm")
    broken = rewrite(path, tmp_path / "broken.safetensors", UNUSABLE[named])
    assert_refused(broken, named, capsys)


def test_files_that_are_not_parity_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(tmp_path / "missing.safetensors", "missing.safetensors", capsys)
    assert_refused(tmp_path, "not a readable safetensors file", capsys)
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors here")
    assert_refused(text, "not a readable safetensors file", capsys)
    whole = write_reference(tmp_path / "whole.safetensors", "trm")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    assert_refused(cut, "not a readable safetensors file", capsys)
    for metadata, named in (
        ({}, "config"),
        ({"config": "{"}, "config"),
        ({"config": "[1]"}, "config"),
        ({"config": '{"kind": "gpt"}'}, "unknown kind 'gpt'"),
        ({"config": '{"kind": "trm"}'}, "no entry"),
    ):
        save_file({"inputs": torch.zeros(1)}, text, metadata)
        assert_refused(text, named, capsys)


def assert_refused(path: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert named in printed.err
    assert str(path) in printed.err
    assert printed.out == ""


def test_an_agent_of_ones_own_can_be_compared(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "own.safetensors", "hrm_agent")
    starts = []

    def make_agent(config: Any, weights: Any) -> Any:
        assert "inner.lm_head.weight" in weights

        def step(inputs: Tensor, seeds: Any, episode_start: Tensor) -> Any:
            starts.append(episode_start.tolist())
            return torch.zeros(BATCH, 4), (torch.zeros(BATCH, 8), torch.zeros(BATCH, 8))

        return step

    assert compare_file(path, make_agent).largest > TOLERANCE
    assert starts == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_the_policy_that_is_compared_is_the_one_that_dqn_trains(positions: str) -> None:
    """Same class, same heads; one step of the paper's DQN on it changes what the comparison sees."""
    config = {**COMMON, **CONFIGS["hrm_agent"], "pos_encodings": positions}
    model = random_model(config)
    weights = {published_name(name): t.clone() for name, t in model.state_dict().items()}
    policy = published_policy(config, weights)
    assert type(policy) is Policy
    inputs = torch.randint(0, 6, (BATCH, 5))
    numbers = agent_numbers(model, inputs)
    start = torch.ones(BATCH, dtype=torch.bool)
    first = policy.step(inputs.unsqueeze(1), policy.initial_state(BATCH), start)
    torch.testing.assert_close(first.logits, numbers["step0/q_values"], rtol=1e-5, atol=1e-6)
    settings: dict[str, Any] = {
        "num_envs": BATCH, "capacity": 32, "learning_starts": 8, "updates": 1, "batch_sequences": 4, "burn_in": 0,
        "train_steps": 1, "n_step": 1, "stride": 1, "each_segment": True, "stored_bootstrap": True, "double_q": False,
        "loss": "mse", "optimizer": "adam_atan2", "learning_rate": 1e-2,
    }  # fmt: skip
    dqn = DQN(policy, DQNConfig(**settings), Threads(1), 0)
    space = gym.spaces.Box(0, 5, (1, 5), np.int64)
    replay = Replay(32, BATCH, space, first.state, 1)
    ended = torch.zeros(BATCH, dtype=torch.bool)
    actions, rewards = torch.tensor([0, 3]), torch.ones(BATCH)
    for _ in range(6):
        replay.add(inputs.unsqueeze(1), first.state, ended, actions, rewards, ended, ended, ended, None)
    dqn.update(replay, 0.0)
    assert dqn.steps == policy.segments == 2
    again = policy.step(inputs.unsqueeze(1), policy.initial_state(BATCH), start)
    assert (again.logits - first.logits).abs().max() > 1e-3


@pytest.mark.parametrize("wrapper", ["inner.", "model.inner.", "_orig_mod.model.inner."])
def test_published_names_with_their_wrappers_load(wrapper: str) -> None:
    config = {**COMMON, **CONFIGS["trm-mlp"]}
    source, target = random_model(config), model_from_published(config)
    weights = {published_name(n).replace("inner.", wrapper, 1): t for n, t in source.state_dict().items()}
    load_published(target, weights, "trm")
    for name, weight in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], weight)
    with pytest.raises(ValueError, match="not the published name"):
        name_from_published("lm_head.weight", "trm")


def test_prefix_is_left_out_and_halting_reads_position_zero() -> None:
    model = PuzzleModel(
        vocabulary_size=6,
        sequence_length=9,
        num_puzzles=2,
        hidden_size=8,
        puzzle_embedding_size=12,
        core_options={"layers": 1, "mixing": "conv", "inner_size": 8},
        grid=(3, 3),
    )
    batch = {"inputs": torch.randint(0, 6, (BATCH, 9)), "puzzle_identifiers": torch.tensor([0, 1])}
    assert model.prefix == 16
    x = model.embed(batch)
    # The embedding of zeros at the start, and the padding for ever; tokens have variance one.
    assert torch.equal(x[:, :16], torch.zeros(BATCH, 16, 8))
    assert x[:, 16:].std().item() == pytest.approx(1, abs=0.3)
    torch.nn.init.ones_(model.puzzles.weight)  # type: ignore[union-attr]
    flat = model.embed(batch)[:, :16].reshape(BATCH, -1)
    assert flat[:, :12].min() > 0
    assert flat[:, 12:].abs().max() == 0
    _, logits, q_halt, q_continue = model(model.initial_state(BATCH), batch)
    assert logits.shape == (BATCH, 9, 6)
    assert torch.equal(q_halt, torch.full((BATCH,), -5.0))
    assert torch.equal(q_continue, torch.full((BATCH,), -5.0))


def test_a_puzzle_embedding_too_large_for_its_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="puzzle_embedding_size=9 does not fit into slots=1"):
        PuzzleModel(
            vocabulary_size=6,
            sequence_length=4,
            num_puzzles=1,
            hidden_size=8,
            puzzle_embedding_size=9,
            core="hrm",
        )


def stablemax_reference(logits: Tensor, labels: Tensor) -> Tensor:
    """The definition, in double precision: each branch is evaluated where it is finite only."""
    x = logits.double()
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    return -(s / s.sum(dim=-1, keepdim=True)).log().gather(-1, labels[..., None])[..., 0]


def test_stablemax_is_a_distribution_and_its_gradient_is_finite() -> None:
    logits = torch.tensor([[-1e6, -1.0, 0.0, 1.0, 3.0]], requires_grad=True)
    losses = stablemax_cross_entropy(logits.expand(5, -1), torch.arange(5))
    s = torch.tensor([1 / (1 + 1e6), 0.5, 1, 2, 4])
    torch.testing.assert_close((-losses).exp(), s / s.sum())
    losses[0].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_stablemax_in_single_precision_is_the_double_one(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(64, 11, generator=generator)).requires_grad_()
    labels, weights = torch.randint(11, (64,), generator=generator), torch.randn(64, generator=generator)
    ours = stablemax_cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), logits)
    theirs = stablemax_reference(logits, labels)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), logits)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_loss_averages_each_sequence_and_asks_for_exact_ones() -> None:
    labels = torch.tensor([[1, 2, -100, -100], [0, 1, 2, 2], [-100, -100, -100, -100]])
    logits = 5 * torch.nn.functional.one_hot(labels.clamp(min=0), 3).float()
    logits[1, 0] = torch.tensor([0.0, 5.0, 0.0])  # one wrong answer
    q_halt = torch.tensor([2.0, 2.0, 2.0])
    loss = puzzle_loss(logits, q_halt, labels)
    right, wrong = -torch.log(torch.tensor(6 / 8)), -torch.log(torch.tensor(1 / 8))
    assert loss.answers.item() == pytest.approx((right + (3 * right + wrong) / 4).item(), rel=1e-5)
    halt = torch.nn.functional.softplus(torch.tensor([-2.0, 2.0, -2.0])).sum()
    assert loss.q_halt.item() == pytest.approx(halt.item())
    assert loss.total.item() == pytest.approx(loss.answers.item() + 0.5 * loss.q_halt.item())
    # Logits at ignored labels do not matter.
    logits[0, 2:] += 1.0
    assert puzzle_loss(logits, q_halt, labels).total.item() == loss.total.item()


def test_the_model_learns_to_copy() -> None:
    torch.manual_seed(0)
    model = PuzzleModel(
        vocabulary_size=5,
        sequence_length=6,
        num_puzzles=1,
        hidden_size=16,
        puzzle_embedding_size=16,
        slots=1,
        core_options={"layers": 1, "num_heads": 2, "inner_size": 32, "H_cycles": 2, "L_cycles": 1},
    )
    inputs = torch.randint(0, 5, (32, 6))
    batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(32, dtype=torch.long)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        _, logits, q_halt, _ = model(model.initial_state(32), batch)
        optimizer.zero_grad()
        (puzzle_loss(logits, q_halt, inputs).total / 32).backward()
        optimizer.step()
    assert (logits.argmax(-1) == inputs).float().mean() > 0.95
    assert q_halt.mean() > -5 + 1  # it also learns that its answers are right
