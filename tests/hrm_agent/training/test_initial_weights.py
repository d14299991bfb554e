"""Runs that start from weights that are there, and parts of a policy that are not trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commands import run_command, tiny_run
from hrm_agent.agents.registry import registry
from hrm_agent.files.reading import CheckpointError
from hrm_agent.policies.policy import Policy
from hrm_agent.supervised.files import ModelConfig, build_model, save_model
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.tasks.base import TaskSpec
from hrm_agent.tensors.files import save_tensors
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from hrm_agent.training.warm_start import PARTS, freeze, initialise, parse_parts, supervised_weights
from tiny import IDS, MAZE, QUICK, make_trainer, tiny_policy

PREFIXES = {"encoder": "encoder.", "core": "core.", "heads": ("policy_head.", "value_head.")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    make_trainer(folder, seed=7).run(Console())
    return folder


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in trainer.policy.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> bool:
    names = [n for n in one if n.startswith(PREFIXES[part])]
    assert names
    return all(torch.equal(one[n], other[n]) for n in names)


@pytest.mark.parametrize("parts", ["core,encoder", "core", "all", "heads, encoder"])
@pytest.mark.parametrize("where", ["", "agents/last"])
def test_the_chosen_parts_are_copied_and_no_others(parts: str, where: str, trained: Path, tmp_path: Path) -> None:
    source = weights_of(make_trainer(tmp_path / "as_trained", init_from=str(trained), init_parts="all"))
    fresh = weights_of(make_trainer(tmp_path / "fresh"))
    mine = weights_of(make_trainer(tmp_path / "run", init_from=str(trained / where), init_parts=parts))
    for part in PREFIXES:
        chosen = part in parts or parts == "all"
        assert same(mine, source, part) == chosen
        assert same(mine, fresh, part) == (not chosen)


def save_puzzle_model(folder: Path, ids: int = IDS, **changes: Any) -> PuzzleModel:
    settings: dict[str, Any] = {"hidden_size": 8, "crop": 1, "patch_size": 2, "core_options": QUICK, **changes}
    config, spec = ModelConfig(**settings), TaskSpec(49, ids, 2, grid=(7, 7))
    torch.manual_seed(5)
    model = build_model(config, spec)
    save_model(folder, model, config, spec)
    return model


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_core_and_encoder_of_a_supervised_model_think_in_a_policy(positions: str, tmp_path: Path) -> None:
    run, best = tmp_path / "run", tmp_path / "run" / "models" / "best"
    save_puzzle_model(tmp_path / "run" / "models" / "last")
    model = save_puzzle_model(best)
    for parameter in model.parameters():  # unlike the last
        parameter.data.mul_(1.5)
    save_tensors(best / "model.safetensors", dict(model.state_dict()), {"kind": "puzzle_model"})
    for path in (run, best, best / "model.safetensors"):
        assert supervised_weights(path).keys() == model.state_dict().keys()
        policy = tiny_policy(core_options=QUICK, positions=positions)
        head = policy.policy_head.weight.clone()
        initialise(policy, path, ("core", "encoder"))
        for name, tensor in model.core.state_dict().items():
            assert torch.equal(policy.core.state_dict()[name], tensor)
        assert torch.equal(policy.policy_head.weight, head)
        ids = torch.randint(IDS, (3, 7, 7), dtype=torch.uint8)
        if positions == "none":  # then the tokens that the cores read are equal too
            tokens = model.embed({"inputs": ids.flatten(1).long(), "puzzle_identifiers": torch.zeros(3).long()})
            torch.testing.assert_close(policy.encoder(ids), tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "parts", "message"),
    [
        (
            {"hidden_size": 16},
            ("core",),
            r"core\..* is \[.*16.*\] there and \[.*8.*\] here \(core.hidden_size=16 there, 8 here\); give this",
        ),
        ({"core": "gru", "core_options": {}}, ("core",), r"core\.cell\..* is there, and not in this policy"),
        ({"core_options": {**QUICK, "layers": 2}}, ("core",), "core.* is there, and not in this policy"),
        ({"ids": 8}, ("encoder", "core"), r"encoder.embedding is \[36, 8\] there and \[28, 8\] here"),
        (
            {"crop": 0, "patch_size": 1},
            ("encoder",),
            "no weights of the encoder in it; leave encoder out",
        ),
        ({}, ("heads",), "no weights of the heads in it"),
    ],
)
def test_a_model_that_does_not_fit_changes_nothing(
    model: dict[str, Any], parts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    save_puzzle_model(tmp_path, **model)
    policy = tiny_policy(core_options=QUICK)
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialise(policy, tmp_path, parts)
    assert all(torch.equal(before[name], t) for name, t in policy.state_dict().items())


def test_a_registered_agent_is_a_source_too(tmp_path: Path) -> None:
    agent = registry["DynamicMaze-TRM-v0"].make()
    policy = Policy(agent.policy.config, agent.observation_space, agent.action_space)
    initialise(policy, "DynamicMaze-TRM-v0", tuple(PARTS))
    assert all(torch.equal(t, policy.state_dict()[name]) for name, t in agent.policy.state_dict().items())


def test_of_an_agent_it_says_which_setting_differs(trained: Path) -> None:
    policy = tiny_policy(core_options={**QUICK, "layers": 2})
    with pytest.raises(ValueError, match=r"is missing there \(core.layers=1 there, 2 here\)"):
        initialise(policy, trained, ("core",))
    with pytest.raises(ValueError, match=r"\(encoder.patch_size=2 there, 1 here\)"):
        initialise(tiny_policy(core_options=QUICK, patch=1), trained, ("encoder",))
    with pytest.raises(ValueError, match=r"\(heads=actor_critic there, q here\)"):
        initialise(tiny_policy(core_options=QUICK, heads="q"), trained, ("heads",))


def test_what_is_no_source_is_refused(trained: Path, tmp_path: Path) -> None:
    policy = tiny_policy(core_options=QUICK)
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder, nor a registered agent"):
        initialise(policy, tmp_path / "nowhere", ("core",))
    save_puzzle_model(tmp_path / "last_only" / "models" / "last")
    initialise(policy, tmp_path / "last_only", ("core",))
    with pytest.raises(CheckpointError, match=r"neither an agent .* nor a supervised model"):
        initialise(policy, tmp_path, ("core",))
    shutil.copytree(trained / "agents" / "best", tmp_path / "damaged")
    weights = tmp_path / "damaged" / "agent.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    for path in (tmp_path / "damaged", weights):
        with pytest.raises(CheckpointError, match="truncated or altered"):
            initialise(policy, path, ("core",))


def test_a_resumed_run_does_not_need_the_source_any_more(trained: Path, tmp_path: Path) -> None:
    source = shutil.copytree(trained, tmp_path / "source")
    make_trainer(tmp_path / "run", init_from=str(source), init_parts="all", total_steps=64).run(Console())
    shutil.rmtree(source)
    resumed = make_trainer(tmp_path / "run", init_from=str(source), init_parts="all")
    resumed.resume()
    assert resumed.frames == 64
    whole = make_trainer(tmp_path / "whole", init_from=str(trained), init_parts="all", total_steps=64)
    whole.run(Console())
    assert all(torch.equal(t, weights_of(resumed)[name]) for name, t in weights_of(whole).items())


def test_what_is_frozen_is_not_trained(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, freeze="core,encoder")
    before = weights_of(trainer)
    trainer.run(Console())
    after = weights_of(trainer)
    assert [part for part in PREFIXES if same(before, after, part)] == ["encoder", "core"]
    resumed = make_trainer(tmp_path, freeze="core,encoder")
    resumed.resume()
    assert [p.requires_grad for p in resumed.policy.core.parameters()] == [False] * len(
        list(trainer.policy.core.parameters())
    )


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(ValueError, match="freeze=encoder,core,carry,heads: nothing is left to train"):
        freeze(tiny_policy(core_options=QUICK), tuple(PARTS))


def test_parts_are_named() -> None:
    assert parse_parts("core, encoder,core", "freeze") == ("core", "encoder")
    assert parse_parts("all", "freeze") == tuple(PARTS)
    assert parse_parts("", "freeze") == ()
    with pytest.raises(ValueError, match="freeze=cores: no part 'cores' of a policy; expected all, or of encoder"):
        parse_parts("cores", "freeze")


@pytest.mark.parametrize("written", ["core,encoder", "[core,encoder]", "core"])
def test_the_command_takes_parts_as_a_list(
    written: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"env.options.{name}={value}" for name, value in MAZE.items()]
    run_command(
        monkeypatch, "train", *tiny_run(tmp_path / "run"), *settings, "total_steps=32", "core.H_cycles=1",
        "core.L_cycles=1", "core.layers=1", "core.num_heads=2", f"init_from={trained}", f"init_parts={written}",
        "freeze=heads,carry",
    )  # fmt: skip
    assert f"weights of {written.strip('[]')} from {trained}" in capsys.readouterr().err
    assert f"init_from: {trained}" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init_from=nowhere"], "init_from=nowhere: no such file or folder"),
        (["init_parts=cores"], "init_parts=cores: no part 'cores'"),
        (["init_parts=[]"], "init_parts=: expected at least one part"),
        (["freeze=all"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_ends_with_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "train", *tiny_run(tmp_path / "run"), *arguments)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_the_ids_of_a_puzzle_are_not_taken_for_those_of_cells(tmp_path: Path) -> None:
    """A maze puzzle has as many ids as a maze environment, in another order."""
    config = ModelConfig("trm", {"mixing": "mlp"}, 8, crop=1)
    spec = TaskSpec(49, 6, 6, grid=(7, 7))
    save_model(tmp_path, build_model(config, spec), config, spec)
    with pytest.raises(ValueError, match="no weights of the encoder in it"):
        initialise(tiny_policy(), tmp_path, ("encoder",))
