"""The comparison of supervision with reinforcement learning: what it runs, records and says; what its probes ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from experiments.engine import runner
from experiments.engine.records import ROOT, load
from experiments.engine.runner import SKILL, Job
from experiments.rl_vs_supervised import draw, latents
from experiments.rl_vs_supervised import run as script
from experiments.rl_vs_supervised.run import HERE, Study
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.similarity import linear_cka
from hrm_agent.launch.cli import compose_config, open_options
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.path_policy import evaluate_path_policy
from hrm_agent.tensors.files import save_tensors

STUDY = Study(HERE)
CONFIG = STUDY.settings


def make_model() -> PuzzleModel:
    torch.manual_seed(0)
    core = {"mixing": "conv", "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 16}
    return PuzzleModel(
        vocabulary_size=6, sequence_length=81, num_puzzles=1, hidden_size=8, puzzle_embedding_size=0, grid=(9, 9),
        answer_ids=2, crop=1, patch_size=2, core_options=core,
    )  # fmt: skip


def test_records_are_of_their_world_and_by_the_same_clock() -> None:
    for r in load(HERE / "results.json"):
        assert r["env_options"] == CONFIG["worlds"][r["world"]]
        if r["agent"] in STUDY.arms():
            assert r["clock"] == "cpu"
            assert str(ROOT) not in r["command"]


@pytest.mark.thorough
@pytest.mark.parametrize("world", CONFIG["worlds"])
@pytest.mark.parametrize("arm", CONFIG["policies"])
def test_policies_are_trained_in_the_same_world_by_the_same_clock(arm: str, world: str) -> None:
    arguments = STUDY.overrides(Job(arm, 2, world))
    start = [a for a in arguments if a.startswith("init_from=")]
    base = CONFIG["policies"][arm].get("from")
    assert start == ([f"init_from=runs/studies/rl_vs_supervised/{world}_{base}_seed2/models/last"] if base else [])
    run, policy, _ = settings(resolve(compose_config(open_options(arguments), "train")))
    assert (run.env, run.env_options, run.seed) == (CONFIG["env"], CONFIG["worlds"][world], 2)
    assert (run.clock, run.max_seconds, run.threads, run.total_steps) == ("cpu", 60, 1, 10**9)
    assert (policy.core, policy.hidden_size, policy.encoder.crop, policy.encoder.patch_size) == ("trm", 64, 1, 2)


def test_every_reading_is_of_a_supervised_run_and_every_start_too() -> None:
    assert {reading["of"] for reading in CONFIG["readings"].values()} <= set(CONFIG["supervised"])
    assert {arm["from"] for arm in CONFIG["policies"].values() if "from" in arm} <= set(CONFIG["supervised"])


def test_a_reading_is_recorded_with_what_its_run_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run is trained once, whoever asks; references are played once a world."""
    trained: list[list[str]] = []

    def train(place: Path, overrides: list[str], jobs: int, module: str) -> None:
        trained.append([module, *overrides])
        (place / "models" / "last").mkdir(parents=True)
        info = {"task_options": {"pool": 50}, "puzzles": 128, "samples": 640, "seconds": 2.5}
        (place / "models" / "last" / "model.json").write_text(json.dumps(info))
        (place / "eval.json").write_text(json.dumps(dict.fromkeys(("exact", "valid", "action", "cells"), 0.5)))
        command = f"python -m {module} {' '.join(overrides)} hydra.run.dir={place}"
        (place / "run.json").write_text(json.dumps({"command": command}))

    study = Study(tmp_path)
    study.settings = CONFIG
    monkeypatch.setattr(runner, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr("hrm_agent.supervised.load_model", lambda place: make_model())
    monkeypatch.setattr(script, "LEVELS", 5)
    for arm in ("path_1", "path_1_carried"):
        assert study.run(Job(arm, 1, "fog"))
    assert len(trained) == 1
    assert trained[0][0] == "hrm_agent.supervise"
    assert "++task.env_options.view=2" in trained[0]
    records = load(tmp_path / "results.json")
    assert [(r["agent"], r["seed"]) for r in records] == [
        ("bfs_replanner", 0), ("clairvoyant", 0), ("path_1", 1), ("path_1_carried", 1), ("random", 0),
    ]  # fmt: skip
    for r in records:
        assert set(r) >= study.required
    one, carried = records[2:4]
    assert (one["carry"], carried["carry"]) == ("reset", "full")
    assert (one["labels"], one["labels_used"], one["seconds"], one["frames"]) == (50, 128, 2.5, 0)
    assert one["command"].endswith("clock=cpu")
    assert "| path_1 | **" in draw.results_table(records)


def test_frames_to_90_are_of_those_who_act_themselves() -> None:
    runs = [{"algo": "ppo", "frames_to_90": frames} for frames in (300, None, 100)]
    assert draw.frames_to_90(runs) == "300"
    assert draw.frames_to_90(runs[1:2]) == "never"
    assert draw.frames_to_90([{"algo": "bc", "frames_to_90": None}]) == ""
    assert draw.training_time([{"seconds_before": 150.0, "seconds": 149.6}]) == "150 + 150 s"


def test_labels_are_those_of_the_whole_run(tmp_path: Path) -> None:
    """As the newest checkpoint counts them: a line of the log comes before the end."""
    assert script.labelled_steps(tmp_path) == 0
    for frames, labels in ((100, 90), (200, 170)):
        path = tmp_path / "checkpoints" / f"{frames:012d}.safetensors"
        save_tensors(path, {"x": torch.zeros(1)}, {"learner": {"labels": labels}})
    assert script.labelled_steps(tmp_path) == 170


def test_probes_ask_where_the_input_does_not_answer() -> None:
    """A token holds a cell, its east and south edges and their crossing."""
    grid = np.array(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [1, 3, 0, 0, 1, 0, 1],
            [1, 1, 1, 0, 1, 0, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 0, 1, 0, 1, 1, 1],
            [1, 0, 1, 4, 1, 5, 1],
            [1, 1, 1, 1, 1, 1, 1],
        ],
        np.uint8,
    )
    encoder = PuzzleModel(
        vocabulary_size=6, sequence_length=49, num_puzzles=1, hidden_size=8, puzzle_embedding_size=0, grid=(7, 7),
        crop=1, patch_size=2,
    ).patches  # fmt: skip
    assert encoder is not None
    path, known = latents.path_tokens(grid[None], encoder.encoder)
    assert known.reshape(3, 3).tolist() == [[False, True, True], [True, True, True], [True, False, False]]
    assert (path & known).reshape(3, 3).tolist() == [[False, True, False], [False, True, False], [False] * 3]


def test_a_probe_reads_what_is_there_and_nothing_from_noise() -> None:
    random = np.random.default_rng(0)

    def views(count: int) -> Any:
        path = random.random((count, 4)) < 0.3
        return latents.Views(path[:, None, :].astype(np.uint8), path, random.random((count, 4)) < 0.8)

    def telling(grids: torch.Tensor) -> torch.Tensor:
        return torch.stack([grids[:, 0].float(), torch.randn(len(grids), 4)], -1)

    fit, test = views(300), views(300)
    found = latents.probe(telling, fit, test)
    assert found["path_auc"] == found["path_balanced_accuracy"] == 1
    assert found["path_cells"] == [int(fit.known.sum()), int(test.known.sum())]
    noise = latents.probe(lambda grids: torch.randn(len(grids), 4, 3), fit, test)
    assert 0.4 < noise["path_auc"] < 0.6


def test_latents_of_a_model_and_of_a_policy_with_its_weights_are_the_same() -> None:
    """What is compared is the same thing on both sides: with equal weights they agree, with others not."""
    model = make_model()
    env = make_vector_env("DynamicMaze-v0", 30)
    views, _ = env.reset(seed=1)
    options = {"mixing": "conv", "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 16, "positions": "none"}
    encoder = yaml.safe_load((ROOT / "configs" / "env" / "DynamicMaze-v0.yaml").read_text())["encoder"]
    config = PolicyConfig(core="trm", core_options=options, hidden_size=8, encoder=EncoderConfig(**encoder))
    policy = Policy(config, env.single_observation_space, env.single_action_space)
    read = [latents.model_reader(model), latents.policy_reader(policy)]
    grids = torch.from_numpy(views)
    with torch.no_grad():
        before = [r(grids).flatten(0, 1) for r in read]
        assert linear_cka(*before) < 0.9
        policy.core.load_state_dict(model.core.state_dict())
        assert model.patches is not None
        policy.encoder.load_state_dict(model.patches.encoder.state_dict())
        after = [r(grids).flatten(0, 1) for r in read]
    torch.testing.assert_close(after[0], after[1])
    assert linear_cka(*after) == pytest.approx(1)


def test_networks_that_should_start_apart_have_other_seeds() -> None:
    seeds = CONFIG["seeds"]
    assert [latents.next_seed(seeds, seed) for seed in seeds] == [*seeds[1:], seeds[0]]
    assert max(seeds) < latents.FRESH_SEEDS
    with pytest.raises(ValueError, match="expected two or more"):
        latents.next_seed([0], 0)


def test_path_policies_are_measured_as_any_agent() -> None:
    """The records hold what the evaluator's report has."""
    assert set(SKILL) <= set(evaluate_path_policy(make_model(), "DynamicMaze-v0", {}, 2, 1, baselines=False))
