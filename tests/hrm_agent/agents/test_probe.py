"""The probe beside an agent's weights: read, written, refused, and never that of other weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hrm_agent
from hrm_agent import agents
from hrm_agent.agents.agent import Agent, AgentOverrides
from hrm_agent.agents.card import probe_of, write_card
from hrm_agent.agents.description import read_description
from hrm_agent.agents.probe import FARTHEST, PROBE_FILE, DistanceProbe, identify, latents_per_token, save_probe
from hrm_agent.environments.make import make_env
from hrm_agent.evaluation import latents
from hrm_agent.evaluation.probes import cell_targets, fit_distance_probe, r_squared
from hrm_agent.evaluation.thinking import ThinkingActor
from hrm_agent.files.reading import CheckpointError
from hrm_agent.policies.tokens import latents_of_tokens
from hrm_agent.probe import probe
from hrm_agent.tensors.files import load_tensors, save_tensors
from hrm_envs.registration import MAZES
from tiny import ACTIONS, GRID, MAZE, QUICK, tiny_policy


def tiny_agent(seed: int = 0, **changes: Any) -> Agent:
    policy = tiny_policy(seed=seed, **{"core_options": QUICK, **changes})
    return Agent(policy, GRID, ACTIONS, {"env": "DynamicMaze-v0", "env_options": MAZE})


def with_probe(folder: Path, agent: Agent | None = None, segments: int = 2) -> Agent:
    """An agent that lies in a folder with some probe."""
    agent = agent or tiny_agent()
    agent.save(folder)
    weights = torch.arange(segments * 16.0).view(segments, 16) / 100
    save_probe(folder, DistanceProbe(weights, torch.ones(segments), identify(agent.policy)))
    return Agent.load(folder)


def test_it_is_read_back_and_kept_by_copies(tmp_path: Path) -> None:
    agent = with_probe(tmp_path / "one")
    found = agent.load_probe()
    assert found is not None
    x = torch.randn(3, 16) / 10
    expected = (x @ (torch.arange(16.0) / 100) + 1).clamp_min(0).exp() - 1
    torch.testing.assert_close(found.read(x, 1), expected)
    assert not torch.equal(found.read(x, 1), found.read(x, 2))
    assert torch.equal(found.read(x, 2), found.read(x, 7))  # the last map is that of all later segments
    assert (found.read(1e9 * x, 1) <= FARTHEST + 1).all()
    for copy in (agent.changed(AgentOverrides(carry="reset", segments=3)), agent.fit(GRID)):
        assert copy.load_probe() is not None
    agent.save(tmp_path / "two")
    assert (tmp_path / "two" / PROBE_FILE).read_bytes() == (tmp_path / "one" / PROBE_FILE).read_bytes()
    assert Agent.load(tmp_path / "two").load_probe() is not None


def test_an_agent_without_one_has_none(tmp_path: Path) -> None:
    assert tiny_agent().load_probe() is None
    tiny_agent().save(tmp_path)
    assert Agent.load(tmp_path).load_probe() is None
    assert not (tmp_path / PROBE_FILE).exists()


def test_that_of_other_weights_is_none(tmp_path: Path) -> None:
    with_probe(tmp_path)
    tiny_agent(seed=1).save(tmp_path)  # as a run that trains on does
    assert Agent.load(tmp_path).load_probe() is None
    tiny_agent(hidden_size=16).save(tmp_path)
    assert Agent.load(tmp_path).load_probe() is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weights": torch.ones(2, 15), "intercepts": torch.ones(2)}, r"weights is \[2, 15\], expected \[2, 16\]"),
        ({"weights": torch.ones(2, 16), "intercepts": torch.ones(3)}, r"intercepts is \[3\], expected \[2\]"),
        ({"weights": torch.ones(2, 16)}, "'intercepts' is missing"),
        ({"weights": torch.ones(2, 16), "intercepts": torch.ones(2), "x": torch.ones(2)}, "'x' is not one of its"),
        ({"weights": torch.full((2, 16), torch.nan), "intercepts": torch.ones(2)}, "NaN or infinite"),
        ({"weights": torch.full((2, 16), 1e300, dtype=torch.float64), "intercepts": torch.ones(2)}, "NaN or infinite"),
        ({"weights": torch.ones(2, 16).long(), "intercepts": torch.ones(2)}, "int64, expected torch.float32"),
        ({"weights": torch.tensor(1.0), "intercepts": torch.ones(2)}, "maps of 0 segments"),
        ({"weights": torch.ones(1025, 16), "intercepts": torch.ones(1025)}, "maps of 1025 segments"),
        ({}, "maps of 0 segments"),
    ],
)
def test_wrong_tensors_are_one_line(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    agent = with_probe(tmp_path)
    save_tensors(tmp_path / PROBE_FILE, tensors, {"kind": "distance_probe", "policy": identify(agent.policy)})
    with pytest.raises(CheckpointError, match=message) as raised:
        agent.load_probe()
    assert "\n" not in str(raised.value)
    assert PROBE_FILE in str(raised.value)


def test_what_is_read_is_a_distance_whatever_the_weights_are() -> None:
    huge = DistanceProbe(torch.full((1, 4), 3e38), torch.zeros(1), "")
    read = huge.read(torch.tensor([[9.0, -9, 9, -9], [9, 9, 9, 9], [-9, -9, -9, -9]]), 1)
    assert ((read >= 0) & (read <= 1.01 * FARTHEST)).all()


def test_other_files_are_one_line(tmp_path: Path) -> None:
    agent = with_probe(tmp_path)
    file = tmp_path / PROBE_FILE
    whole = file.read_bytes()
    for content, message in (
        (whole[:-1], "truncated or altered"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "the file was altered"),
        ((tmp_path / "agent.safetensors").read_bytes(), "not a distance probe"),
        (bytes(2**24 + 1), "16,777,217 bytes; expected 16,777,216 at most"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            agent.load_probe()


def test_it_reads_as_well_as_the_facts_say(tmp_path: Path) -> None:
    """From fresh episodes of the validation levels, with an episode at a time in place of batches."""
    policy = tiny_policy(core="hrm", segments=2)
    env_options = {**MAZE, "walls": 0}
    made, facts = fit_distance_probe(policy, "DynamicMaze-v0", env_options, 20, 4, segments=1)
    assert [len(facts["r2"]), len(facts["random"])] == [2, 2]  # at least the policy's own segments
    assert made.weights.shape == (2, latents_per_token(policy)) == (2, 16)
    assert -1 < facts["r2"][1] < 1
    read, true = [], []
    for moment in latents.play(policy, "DynamicMaze-v0", env_options, 4, split="validation", batch=1):
        if moment.number % 2:
            continue
        states, _ = latents.trace_segments(policy, torch.as_tensor(moment.obs), moment.state, moment.episode_start, 2)
        tokens = latents_of_tokens(policy, states[2])
        targets = cell_targets(moment.maps, policy.encoder)
        assert tokens is not None
        scores = tokens.double() @ made.weights[1].double() + made.intercepts[1]
        read.append(scores.numpy()[targets.distance_known])
        true.append(targets.distance[targets.distance_known])
    assert sum(map(len, true)) == facts["cells"][1]
    assert r_squared(np.concatenate(read), np.concatenate(true)) == pytest.approx(facts["r2"][1], abs=1e-4)


def test_the_command_writes_the_probe_and_the_figures(tmp_path: Path) -> None:
    tiny_agent().save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("agent.safetensors", "README.md")}
    file, facts = probe(str(tmp_path), train_episodes=3, episodes=2, segments=2)
    assert file == tmp_path / PROBE_FILE
    assert (tmp_path / "agent.safetensors").read_bytes() == before["agent.safetensors"]
    agent = Agent.load(tmp_path)
    assert agent.info["distance_probe"] == facts
    card = (tmp_path / "README.md").read_text()
    assert card == write_card(read_description(tmp_path))
    head, _, rest = before["README.md"].decode().partition("## Use")
    assert card.startswith(head)  # the rest of the page stays
    assert card.endswith("## Use" + rest)
    assert f"{facts['r2'][1]:.2f}" in card
    env = make_env("DynamicMaze-v0", MAZE)
    thought = ThinkingActor(agent.policy, agent.load_probe()).act(env.reset(seed=0)[0])
    assert thought.distance is not None
    assert thought.distance.shape == (1, agent.policy.encoder.length)


@pytest.mark.parametrize(
    ("changes", "env", "message"),
    [
        ({"core": "gru", "core_options": {"memory_size": 4}}, {}, "no latent per token"),
        ({}, {"env": "CartPole-v1"}, "do not fit"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    tmp_path: Path, changes: dict[str, Any], env: dict[str, Any], message: str
) -> None:
    tiny_agent(**changes).save(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        probe(str(tmp_path), train_episodes=2, episodes=2, segments=1, **env)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_figures_of_another_type_are_refused(tmp_path: Path) -> None:
    facts = {"env": "DynamicMaze-v0", "env_options": {}, "split": "validation", "first_level": 0, "levels": 1}
    facts |= {"train_levels": 1, "r2": [0.5], "random": [0.1], "input": 0.0, "input_3x3": None}
    tiny_agent().save(tmp_path)
    description = read_description(tmp_path)
    wrongs: list[dict[str, Any]] = [{"r2": ["high"]}, {"levels": "all"}, {"split": "\x1b[31m"}]
    wrongs += [{"r2": []}, {"random": [0.1, 0.2]}]
    for wrong in wrongs:
        description["info"]["distance_probe"] = {**facts, **wrong}
        (tmp_path / "agent.json").write_text(json.dumps(description))
        with pytest.raises(CheckpointError, match=r"agent\.json: not an agent's description"):
            read_description(tmp_path)
    for other in ("mine", {"r2": 3}):  # of the agent's owner, and not shown
        description["info"]["distance_probe"] = other
        (tmp_path / "agent.json").write_text(json.dumps(description))
        assert "What its latents hold" not in write_card(read_description(tmp_path))


@pytest.mark.parametrize("folder", agents.folders(), ids=lambda folder: folder.name)
def test_shipped_agents_have_one_that_reads_better_than_its_controls(folder: Path) -> None:
    agent = hrm_agent.make(folder.name)
    if agent.info["env"] not in MAZES:
        pytest.skip("no maze")
    assert agent.load_probe() is not None
    facts = probe_of(agent.info)
    assert facts is not None
    assert facts["r2"][0] > 0.05 + max(facts["random"][0], facts["input"], facts["input_3x3"])
    assert (folder / "README.md").read_text() == write_card(read_description(folder))


def test_a_forged_probe_does_not_stop_the_agent(tmp_path: Path) -> None:
    """It is read when it is asked for."""
    shutil.copytree(agents.folders()[0], tmp_path / "agent")
    (tmp_path / "agent" / PROBE_FILE).write_bytes(b"\x80\x04K.")
    agent = Agent.load(tmp_path / "agent")
    with pytest.raises(CheckpointError):
        agent.load_probe()


def test_equal_probes_are_equal_files(tmp_path: Path) -> None:
    with_probe(tmp_path / "one")
    with_probe(tmp_path / "two")
    one, two = ((tmp_path / name / PROBE_FILE).read_bytes() for name in ("one", "two"))
    assert one == two
    assert load_tensors(tmp_path / "one" / PROBE_FILE)[1]["kind"] == "distance_probe"
