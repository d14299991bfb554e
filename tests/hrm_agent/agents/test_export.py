"""ONNX: the exported graph decides as the agent does, with the state carried by whoever runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from commands import run_command
from hrm_agent import Agent
from hrm_agent.agents import onnx
from hrm_agent.environments.make import make_vector_env
from hrm_agent.environments.spaces import space_from_dict
from tiny import ACTIONS, BLOCKS, GRID, MAZE, QUICK, tiny_policy

onnx_format = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

STEPS, ENVS, TIE = 100, 30, 1e-5
# Sizes differ, the kinds of operation do not: a graph costs seconds to make, each operation its share.
AGENTS: dict[str, dict[str, Any]] = {
    "trm-conv": {"core_options": QUICK, "segments": 2},
    "hrm-attention-gate": {
        "core": "hrm",
        "core_options": {"H_layers": 1, "L_layers": 1, "H_cycles": 1, "L_cycles": 1, "positions": "rope", **BLOCKS},
        "carry": "gate",
    },
}


def open_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


class Exported(NamedTuple):
    agent: Agent
    path: Path
    made: dict[str, Any]


class Exports(dict[str, Exported]):
    """An agent of each kind that is asked for, and its graph."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.space = folder, make_vector_env("DynamicMaze-v0", 1, MAZE).single_observation_space

    def __missing__(self, kind: str) -> Exported:
        policy = tiny_policy(self.space, **AGENTS[kind])
        agent = Agent(policy, self.space, ACTIONS, {"env": "DynamicMaze-v0", "env_options": MAZE})
        path = self.folder / f"{kind}.onnx"
        self[kind] = Exported(agent, path, onnx.export_onnx(agent, path))
        return self[kind]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exported"))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", AGENTS)
def test_three_thousand_decisions_with_carried_state_equal_torchs(kind: str, exported: Exports) -> None:
    agent, path, made = exported[kind]
    env, session = make_vector_env("DynamicMaze-v0", ENVS, MAZE), open_session(path)
    assert [port.name for port in session.get_inputs()] == made["inputs"]
    assert [port.name for port in session.get_outputs()] == made["outputs"]

    obs, _ = env.reset(seed=0)
    start, theirs = np.ones(ENVS, bool), None
    mine = agent.policy.initial_state(ENVS)
    ends = clear = 0
    for _ in range(STEPS):
        actions, logits, value, *theirs = session.run(None, onnx.to_feed(agent, obs, start, theirs))
        with torch.no_grad():
            decision = agent.policy.step(torch.from_numpy(obs), mine, torch.from_numpy(start))
        mine = decision.state
        expected = decision.logits.numpy()
        assert np.abs(logits - expected).max() < 1e-4
        assert np.abs(value - decision.value.numpy()).max() < 1e-4
        best = np.sort(expected)[:, -2:]
        decided = best[:, 1] - best[:, 0] > TIE
        assert np.array_equal(actions, logits.argmax(-1))
        assert (actions == expected.argmax(-1))[decided].all()
        clear += int(decided.sum())
        # Explores now and then: greedy and untrained, it would stand before one wall for ever.
        played = np.where(np.random.default_rng(ends + clear).random(ENVS) < 0.3, (actions + 1) % 4, actions)
        obs, _, terminated, truncated, _ = env.step(played)
        start = terminated | truncated
        ends += int(start.sum())
    assert ends > 100
    assert clear > 0.99 * STEPS * ENVS
    env.close()


def test_dictionaries_q_values_and_metadata(tmp_path: Path) -> None:
    space = gym.spaces.Dict(map=GRID, speed=gym.spaces.Box(-1, 1, (2,), np.float64), mode=gym.spaces.Discrete(3))
    actions = gym.spaces.Discrete(4, start=1)
    policy = tiny_policy(space, core="gru", heads="q")
    agent = Agent(policy, space, actions, {"env": "Mine-v0", "note": "é"})
    made = onnx.export_onnx(agent, tmp_path / "agent.onnx")
    assert made["inputs"] == [*(f"obs.{key}" for key in space.spaces), "episode_start", "state_0"]
    assert made["outputs"] == ["action", "logits", "state_0_next"]  # of Q-values the largest is the value
    assert made["bytes"] == (tmp_path / "agent.onnx").stat().st_size
    session = open_session(tmp_path / "agent.onnx")
    said = session.get_modelmeta().custom_metadata_map
    assert space_from_dict(json.loads(said["hrm_agent.observation_space"])) == space
    assert space_from_dict(json.loads(said["hrm_agent.action_space"])) == actions
    assert json.loads(said["hrm_agent.info"]) == agent.info
    assert json.loads(said["hrm_agent.policy"]) == json.loads(json.dumps(policy.config.to_dict()))
    assert {port.shape[0] for port in session.get_inputs()} == {"batch"}
    for size in (1, 4):
        obs = onnx._random_observations(agent, size, np.random.default_rng(size))
        action, _, state = session.run(None, onnx.to_feed(agent, obs, True, None))
        chosen, kept = agent.predict(obs)
        assert action.tolist() == chosen.tolist()
        assert state == pytest.approx(kept[0], abs=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (
            gym.spaces.Box(0, 255, (36, 40, 3), np.uint8),
            gym.spaces.Box(np.float32([-2, 0]), np.float32([0.001, np.inf])),
        ),
        (gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.MultiDiscrete([3, 2], start=[1, 5])),
    ],
    ids=["picture-box", "vector-multidiscrete"],
)
def test_other_observations_and_actions(space: gym.Space, actions: gym.Space, tmp_path: Path) -> None:
    policy = tiny_policy(space, actions=actions, core="gru", readout="mean", crop=0, patch=1)
    agent = Agent(policy, space, actions)
    onnx.export_onnx(agent, tmp_path / "agent.onnx")
    session, mine, theirs = open_session(tmp_path / "agent.onnx"), None, None
    random = np.random.default_rng(0)
    for step in range(20):
        obs = onnx._random_observations(agent, 5, random)[""]
        action, _, _, *theirs = session.run(None, onnx.to_feed(agent, obs, step == 0, theirs))
        chosen, mine = agent.predict(obs, mine)
        assert action.dtype == chosen.dtype
        assert action == pytest.approx(chosen, abs=1e-4)
        assert all(actions.contains(a) for a in action)


@pytest.mark.slow
def test_an_agent_with_sweeps(tmp_path: Path) -> None:
    """`test_sweep.py` traces the scan itself, which is what is particular about it; here it is a graph of ONNX."""
    space = gym.spaces.Box(0, 5, (3, 5), np.uint8)  # 1 x 2 tokens: tracing takes its time for every step of a scan
    policy = tiny_policy(space, core_options={**QUICK, "mixing": "sweep"})
    made = onnx.export_onnx(Agent(policy, space, ACTIONS), tmp_path / "agent.onnx")
    assert made["largest_difference"] < onnx.TOLERANCE


@pytest.mark.thorough
def test_a_graph_that_says_something_else_is_not_written(
    exported: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, path, _ = exported["trm-conv"]
    policy = tiny_policy(right.observation_space, **AGENTS["trm-conv"])
    policy.load_state_dict(right.policy.state_dict())
    agent = Agent(policy, right.observation_space, ACTIONS, right.info)
    with torch.no_grad():
        policy.policy_head.weight.mul_(1.001)
    monkeypatch.setattr(onnx, "_trace", lambda *_: onnx_format.load(path))
    with pytest.raises(onnx.ExportError, match="gives other numbers than torch: logits is off by"):
        onnx.export_onnx(agent, tmp_path / "agent.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["run=agent", "out=agent.pt"], "out=agent.pt: expected a name that ends in .onnx"),
        (["run=agent", "out=absent/agent.onnx"], "in a folder that exists"),
        (["run=agent"], "stop=latent_change: rows that stop thinking at different times"),
        (["run=agent", "agent=A-v0"], "one of the two"),
        (["run=absent"], "absent: no such folder"),
        (["run=agent", "carry=all"], "carry='all'"),
    ],
)
def test_what_cannot_be_exported_is_refused_on_one_line(
    given: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Agent(tiny_policy(stop="latent_change", stop_threshold=0.1), GRID, ACTIONS).save(tmp_path / "agent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "export", *given)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert line in said
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_without_the_extra_the_user_is_told_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(onnx.ExportError, match=r"pip install 'hrm-agent\[onnx\]'"):
        onnx.export_onnx(Agent(tiny_policy(), GRID, ACTIONS), tmp_path / "agent.onnx")
