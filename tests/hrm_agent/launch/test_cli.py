"""Bad input: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from commands import TINY_RUN, run_command, tiny_run
from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluate import evaluate
from hrm_agent.launch import hydra_plugin, runs
from hrm_agent.launch.cli import (
    UsageError,
    compose_config,
    expand_sweeps,
    open_options,
    parse_options,
)
from hrm_agent.launch.resume import load_run, reopen_run
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.parallel.memory import available_memory
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.supervised.trainer import SupervisedTrainer
from hrm_agent.train import CHANGEABLE, check_run
from hrm_agent.training import learners
from hrm_agent.training.loop import RunLoop
from hrm_agent.training.trainer import Trainer
from refusals import files, refusal

TRAIN = [
    ("env=DynamicMaz-v0", "did you mean DynamicMaze-v0?"),
    ("core=trmm", "did you mean trm?"),
    ("lr=0.1", "lr: no such setting; did you mean algo.learning_rate?"),
    ("bogus=1", "bogus: no such setting; python -m hrm_agent.train --help lists them"),
    ("algo=sac", "algo=sac: no such algo. Known: bc, dagger, dqn, ppo"),
    ("env=Pong", "env=Pong: no such environment; an id that another package registers is given as MODULE:ID"),
    (f"env.options.p_change=1{'0' * 400}", "is not a number from 0 to 1"),
    ("core=hrn", "did you mean hrm?"),
    ("carry=ful", "did you mean full?"),
    ("carry=foo", "Known: auto, full, gate, gate_scalar, gate_state, last_token, leak, output, reset"),
    ("algo=pop", "did you mean ppo?"),
    ("env.id=DynamicMaze-v9", "did you mean DynamicMaze-v0?"),
    ("total_step=5", "did you mean total_steps?"),
    ("algo.learning_rat=1", "did you mean algo.learning_rate?"),
    ("+bogus=1", "bogus=1: no such setting"),
    ("+env.bogus=1", "env.bogus=1: no such setting"),
    ("+carry.bogus=1", "carry.bogus=1: no such setting"),
    ("algo.min_segments=2", "algo.min_segments=2: expected at most segments=1"),
    ("algo.min_segments=-1", "algo.min_segments=-1: expected an integer from 0"),
    ("+algo.bogus=1", "algo.bogus=1: no such setting"),
    ("+env.encoder.bogus=1", "encoder.bogus=1: no such setting"),
    ("encoder.crop=0", "did you mean env.encoder.crop?"),
    ("hydra.run.dr=x", "hydra.run.dr: no such setting"),
    ("core.mixing=convv", "did you mean conv?"),
    ("+core.depth=3", "'depth'"),
    ("env.options.walls=1000", "walls=1000 is not an integer from 0 to 23"),
    ("env.options.wals=3", "wals"),
    ("env.options.p_change=2.0", "p_change"),
    ("algo=dqn algo.capacity=1000000000", "the replay needs"),
    ("segments=0", "segments=0: expected an integer from 1 to 1,024"),
    ("segments=1.5", "segments=1.5: expected an integer"),
    ("time_gradient=bppt", "time_gradient='bppt': expected bptt or detached; did you mean bptt?"),
    ("readout=middle", "expected one of agent"),
    ("core.H_cycles=2 core.cycle_gradient=last", "no gradient reaches the carried state"),
    ("env.encoder.crop=-1", "encoder.crop=-1: expected an integer from 0"),
    ("env.encoder.crop=9", "nothing is left"),
    ("algo.minibatch_windows=7", "does not divide"),
    ("algo.rollout_steps=15", "does not divide into windows"),
    ("algo.gamma=1.1", "from 0 to 1"),
    ("algo.epochs=two", "algo.epochs='two': expected an integer from 1 to 65,536"),
    ("total_steps=-5", "total_steps=-5: expected an integer from 1 to 1,000,000,000,000,000"),
    ("total_steps=abc", "total_steps='abc': expected an integer from 1"),
    ("total_steps=null", "total_steps=null: expected an integer"),
    ("test_episodes=-1", "test_episodes=-1: expected an integer from 0"),
    ("test_episodes=abc", "expected an integer"),
    ("eval_episodes=0", "expected an integer from 1"),
    ("seed=-1", "expected an integer from 0"),
    ("threads=0", "expected an integer from 1"),
    ("shards=0", "threads=0: expected an integer from 1"),
    ("device=tpu", "device=tpu"),
    ("seed", "seed"),
    ("seed=[1", "seed=[1"),
    ("resume=absent", "resume=absent: no such folder"),
    ("env=5", "env=5: expected a name, CartPole-v1,"),
    ("env=..:x", "env=..:x: "),
    ("env.encoder=null", "encoder=null: expected settings, encoder.NAME=VALUE"),
    ("env.options=abc", "env.options='abc': expected settings, env.options.NAME=VALUE"),
    ("carry=[1]", "carry=[1]: expected a name, auto, full,"),
    ("cuda=1", "cuda=1: expected settings, cuda.NAME=VALUE"),
    ("core.branch_gain=abc", "core.branch_gain='abc': expected a number above 0"),
    ("core.num_heads=abc", "core.num_heads='abc': expected an integer from 1 to 1,024"),
    ("core.hidden_size=1000000000", "core.hidden_size=1000000000: expected an integer from 1 to 8,192"),
    ("segments=1000000000000", "segments=1000000000000: expected an integer from 1 to 1,024"),
    ("algo.num_envs=1000000000", "algo.num_envs=1000000000: expected an integer from 1 to 65,536"),
    ("seed=18446744073709551616", "expected an integer from 0 to 10,000,000,000,000"),
    ("eval_episodes=18446744073709551616", "expected an integer from 1 to 10,000,000"),
    ("test_episodes=18446744073709551616", "expected an integer from 0 to 10,000,000"),
    ("max_seconds=nan", "max_seconds=nan: expected a number, 0 or more"),
    ("~threads", "threads: required, and not given"),
    ("init_from=\x1b[31mred", r"\x1b[31mred"),
    ("seed=" + "[" * 21, "nested 21 times; expected at most"),
    ("seed=" + "1" * 30_000, "30,005 characters"),
    ("task=sudoku", "task=sudoku: train takes environments, env=ID; python -m hrm_agent.supervise takes tasks"),
    ("--multirun seed=range(0,1000000000)", "expected at most 100,000 values"),
    ("--multirun seed=0,1 core=trm,trn", "did you mean trm?"),
    ("--multirun segments=1,0", "segments=0: expected an integer from 1"),
    ("--multirun env.options.walls=1,1000", "walls=1000"),
]


@pytest.mark.parametrize(("arguments", "message"), TRAIN, ids=[ascii(a)[1:60] for a, _ in TRAIN])
def test_train_refuses_bad_input(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(monkeypatch, capsys, "train", arguments.split(), tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    handlers = list(logging.root.handlers)
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "train", *tiny_run(folder), "total_steps=64", "checkpoint_every=32")
    logging.root.handlers[:] = handlers
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for path, data in files(run).items():
        target = folder / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def damage(run: Path, how: str) -> None:
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert checkpoints
    match how:
        case "not a run":
            (run / "run.json").unlink()
        case "no configuration":
            (run / "config.yaml").unlink()
        case "other version":
            described = json.loads((run / "run.json").read_text())
            (run / "run.json").write_text(json.dumps({**described, "run_version": 99}))
        case "no command":
            described = json.loads((run / "run.json").read_text())
            (run / "run.json").write_text(json.dumps({**described, "command": "python"}))
        case "description cut":
            (run / "run.json").write_text((run / "run.json").read_text()[:30])
        case "configuration garbled":
            (run / "config.yaml").write_text("a: [1,\n:::")
        case "configuration cut":
            (run / "config.yaml").write_text("\n".join((run / "config.yaml").read_text().splitlines()[:3]))
        case "checkpoints cut":
            for path in checkpoints:
                path.write_bytes(path.read_bytes()[:-5])
        case "checkpoints altered":
            for path in checkpoints:
                data = bytearray(path.read_bytes())
                data[-40] ^= 1
                path.write_bytes(data)
        case "agent cut":
            for path in (run / "agents").rglob("agent.safetensors"):
                path.write_bytes(path.read_bytes()[:-5])
        case "agent altered":
            for path in (run / "agents").rglob("agent.safetensors"):
                data = bytearray(path.read_bytes())
                data[-40] ^= 1
                path.write_bytes(data)


RESUME = {
    "not a run": "not the folder of a run",
    "no configuration": "not the folder of a run",
    "other version": "run of version 99, expected 1",
    "description cut": "not a run's description",
    "no command": "not a run's description",
    "configuration garbled": "not valid YAML",
    "configuration cut": "required, and not given",
    "checkpoints cut": "truncated or altered",
    "checkpoints altered": "checksum does not match",
}


@pytest.mark.parametrize("how", RESUME)
def test_resume_refuses_a_damaged_run(
    how: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy, how)
    assert RESUME[how] in refusal(monkeypatch, capsys, "train", ["resume=run"], copy.parent)


@pytest.mark.parametrize("trainer", [Trainer, pytest.param(SupervisedTrainer, marks=pytest.mark.thorough)])
def test_a_run_is_resumed_by_the_command_that_began_it(
    trainer: type[RunLoop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    supervised = ["task.rows=3", "task.cols=3", "core.hidden_size=8", "training.batch_size=2", "eval_puzzles=2"]
    begun = {"train": TINY_RUN, "supervise": [*supervised, "test_puzzles=0", "threads=1"]}
    mine, other = ("train", "supervise") if trainer is Trainer else ("supervise", "train")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "run", killed)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, mine, *begun[mine], f"hydra.run.dir={tmp_path / 'run'}")
    assert exit_.value.code == 130
    again = f"nothing has been saved yet, begin it again with: python -m hrm_agent.{mine} resume={tmp_path / 'run'}\n"
    assert capsys.readouterr().err.endswith(again)
    line = refusal(monkeypatch, capsys, other, ["resume=run"], tmp_path)
    assert f"run: a run of hrm_agent.{mine}, not of hrm_agent.{other}" in line


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("total_steps=-5", "total_steps=-5: expected an integer from 1 to 1,000,000,000,000,000"),
        ("total_steps=abc", "expected an integer from 1"),
        ("test_episodes=abc", "expected an integer"),
        ("core.hidden_size=16", "cannot change in a run that is resumed"),
        ("seed=1", "cannot change"),
    ],
)
def test_resume_refuses_bad_settings(
    argument: str, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(monkeypatch, capsys, "train", ["resume=run", argument], copy.parent)


def test_a_run_is_not_written_over(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(monkeypatch, capsys, "train", [*TINY_RUN, "hydra.run.dir=run"], copy.parent)
    assert "resume it with resume=run" in line


AFTER = [
    ("evaluate", "run=absent", "absent: no such folder"),
    ("watch", "run=absent", "absent: no such folder"),
    ("evaluate", "", "expected run=FOLDER or agent=ID"),
    ("watch", "", "expected run=FOLDER or agent=ID"),
    ("evaluate", "run=run episode=5", "did you mean episodes?"),
    ("evaluate", "run=run episodes=0", "episodes"),
    ("evaluate", "run=run episodes=abc", "episodes='abc': expected an integer from 1"),
    ("evaluate", "run=run episodes=1.5", "episodes=1.5: expected an integer from 1"),
    ("watch", "run=run fps=fast", "fps='fast': expected a number from 0.01"),
    ("watch", "run=run fps=nan", "fps='nan': expected a number from 0.01 to 1,000"),
    ("watch", "run=run out=null", "out=null: expected a text"),
    ("evaluate", "run=run seed=18446744073709551616", "seed=18446744073709551616: expected an integer from 0"),
    ("evaluate", "run=run episodes=18446744073709551616", "expected an integer from 1 to 10,000,000"),
    ("evaluate", "run=run env_options=abc", "env_options='abc': expected settings, {NAME: VALUE} or null"),
    ("evaluate", "run=run env_options.rows=2 env_options.rows.y=3", "rows is no group of settings but 2"),
    ("evaluate", "run=run env_options=[*a]", "anchors, aliases and tags are not read"),
    ("evaluate", "run=run env_options={a:", "not a value in YAML"),
    ("evaluate", "run=run env_options=" + "[" * 500, "nested 500 times"),
    ("evaluate", "run=run out=" + "x" * 30_000, "30,004 characters"),
    ("evaluate", "run=run out=${x}", "Interpolation key 'x' not found"),
    ("evaluate", "run=run baselines=1", "baselines=1: expected true or false"),
    ("evaluate", "run=run \x1b[31m=1", r"\x1b[31m: no such setting. Known: "),
    ("evaluate", "run=run episodes", "'episodes': expected KEY=VALUE"),
    ("evaluate", "run=run carry=foo out=eval.json", "carry='foo'"),
    ("evaluate", "run=run segments=0 out=eval.json", "segments=0: expected an integer from 1"),
    ("evaluate", "run=run segments=abc", "segments"),
    ("watch", "run=run env=CartPole-v1", "do not fit"),
    ("evaluate", "run=run level_set=defaults", "default"),
    ("evaluate", "run=run stop=soon", "fixed, latent_change, policy_kl"),
    ("shifts", "run=absent", "absent: no such folder"),
    ("shifts", "run=run axes=[length]", "length"),
    ("evaluate", "run=run env=CartPole-v1 out=eval.json", "do not fit"),
    ("evaluate", "run=run env=DynamicMaz-v0", "did you mean DynamicMaze-v0?"),
    ("evaluate", "run=run which=worst", "expected best or last"),
    ("evaluate", "run=run split=tests", "split='tests'"),
    ("evaluate", "run=run band=tests", "split='tests'"),
    ("watch", "run=run out=film.avi", ".gif or .mp4"),
    ("watch", "run=run episodes=0", "episodes"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), AFTER, ids=[ascii(f"{c} {a}")[1:60] for c, a, _ in AFTER])
def test_evaluate_and_watch_refuse_bad_input(
    command: str,
    arguments: str,
    message: str,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refusal(monkeypatch, capsys, command, arguments.split(), copy.parent)


@pytest.mark.parametrize("command", ["evaluate", "watch"])
@pytest.mark.parametrize(
    ("how", "message"), [("agent cut", "truncated or altered"), ("agent altered", "checksum does not match")]
)
def test_a_damaged_agent_is_refused(
    command: str,
    how: str,
    message: str,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(copy, how)
    assert message in refusal(monkeypatch, capsys, command, ["run=run"], copy.parent)


def test_a_finished_run_is_evaluated(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    run_command(monkeypatch, "evaluate", "run=run", "episodes=6", "out=eval.json")
    report = json.loads((copy.parent / "eval.json").read_text())
    assert report["split"] == "test"
    assert report["env_options"]["rows"] == 3
    assert 0 <= report["success_ci95"][0] <= report["success"] <= report["success_ci95"][1] <= 1


def test_a_multirun_trains_every_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = list(logging.root.handlers)
    jobs = ["seed=0,1", "total_steps=32", f"hydra.sweep.dir={tmp_path}"]
    run_command(monkeypatch, "train", "--multirun", *TINY_RUN, *jobs)
    logging.root.handlers[:] = handlers
    weights = [tmp_path / job / "agents" / "last" / "agent.safetensors" for job in ("0", "1")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_sweeps_are_expanded_to_jobs() -> None:
    assert list(expand_sweeps(["a=1,2", "b=x", "c=range(0,2)"])) == [
        [f"a={a}", "b=x", f"c={c}"] for a in (1, 2) for c in (0, 1)
    ]


def test_settings_have_their_former_names_too(copy: Path) -> None:
    """On the command line, in a file of settings, and in runs and agents of before."""
    assert open_options(["shards=2", "stop=settled"]) == ["threads=2", "stop=settled"]
    typed = settings(resolve(compose_config(["shards=2", "stop=settled"], "train")))
    assert (typed[0].threads, typed[1].stop) == (2, "latent_change")
    assert resolve(compose_config(["training.rows_at_once=8"], "supervise"))["training"]["chunk_size"] == 8
    assert resolve(OmegaConf.create({"threads": "auto", "shards": 3})) == {"threads": 3}
    assert resolve(OmegaConf.create({"threads": 2, "shards": 3})) == {"threads": 2}  # as typed over a file
    assert PolicyConfig.from_dict({**PolicyConfig().to_dict(), "stop": "agreed"}).stop == "policy_kl"
    values = load_run(copy, "hrm_agent.train")
    kept = OmegaConf.to_yaml(values).replace("threads:", "shards:").replace("stop: fixed", "stop: settled")
    (copy / "config.yaml").write_text(kept)
    _, again = reopen_run({"resume": str(copy)}, "hrm_agent.train", CHANGEABLE, settings)
    trainer, policy, _ = settings(again)
    assert again == {**values, "stop": "settled"}
    assert (trainer.threads, policy.stop) == (1, "latent_change")


def test_environment_parameters_need_no_plus() -> None:
    given = ["env.options.doors=5", "+env.options.walls=1", "env=X", "total_steps=1"]
    assert open_options(given) == ["++env.options.doors=5", *given[1:]]


def test_options_take_dotted_names_and_folders_called_by_a_number() -> None:
    options = parse_options(["run=0", "env_options.p_change=0.2"], evaluate, "usage")
    assert options["run"] == "0"
    assert options["env_options"] == {"p_change": 0.2}


def test_a_group_without_its_plus_sign_is_named_with_it() -> None:
    with pytest.raises(UsageError, match=r"\+experiment=braid"):
        compose_config(["experiment=braid"], "train")


@pytest.mark.parametrize(
    ("experiment", "tokens"), [("hrm_agent_maze", 1 + 11 * 13), ("hrm_agent_four_rooms", 1 + 13 * 13)]
)
def test_the_papers_experiments_are_the_papers(experiment: str, tokens: int) -> None:
    """arXiv 2510.22832 and its code; every figure is one of theirs, but for the vocabulary and the head's bias."""
    cfg = compose_config([f"+experiment={experiment}"], "train")
    check_run(cfg)
    run, policy, algo = settings(resolve(cfg))
    assert isinstance(algo, DQNConfig)
    assert (policy.core, policy.carry, policy.readout, policy.segments) == ("hrm", "last_token", "last", 8)
    assert (policy.stop, policy.heads, policy.time_gradient) == ("fixed", "q", "detached")
    env = make_vector_env(run.env, 1, run.env_options)
    made = Policy(policy, env.single_observation_space, env.single_action_space)
    assert made.encoder.length == tokens
    blocks = 8 * (4 * 64 * 64 + 3 * 64 * 256)  # 4 + 4 layers: attention and SwiGLU
    assert sum(p.numel() for p in made.core.parameters()) == blocks == 524_288
    assert (algo.num_envs, algo.batch_sequences, algo.capacity) == (256, 256, 2**20)
    # 8 updates for every 256 new frames, so 200,000 for the whole run
    assert run.total_steps // (algo.num_envs * algo.collect_steps) * algo.updates * policy.segments == 200_000
    assert (algo.learning_rate, algo.warmup, algo.anneal, algo.target_ema) == (1e-4, 10_000, False, 0.999)
    assert (algo.epsilon_start, algo.epsilon_end, algo.epsilon_updates) == (1.0, 0.33, 300_000)
    assert (algo.optimizer, algo.beta1, algo.beta2, algo.loss, algo.gamma) == ("adam_atan2", 0.9, 0.999, "mse", 0.95)
    assert (algo.n_step, algo.double_q, algo.each_segment, algo.stored_bootstrap) == (1, False, True, True)


def test_a_replay_that_does_not_fit_into_memory_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper's run with the whole latent grid carried: 2 x 144 x 64 numbers of 4 bytes for each of 2^20 frames."""
    monkeypatch.setattr(learners, "available_memory", lambda device: 32 * 10**9)
    paper = ["+experiment=hrm_agent_maze", "device=cpu"]
    check_run(compose_config(paper, "train"))
    line = refusal(monkeypatch, capsys, "train", [*paper, "carry=full"], tmp_path)
    assert "algo.capacity=1048576: the replay needs 77.5 GB, and cpu has 32.0 GB; lower algo.capacity" in line
    check_run(compose_config([*paper, "carry=full", "algo.capacity=262144"], "train"))
    monkeypatch.setattr(learners, "available_memory", lambda device: None)  # a system that does not say
    check_run(compose_config([*paper, "carry=full"], "train"))


def test_the_memory_of_this_machine_is_known() -> None:
    assert 2**26 < (available_memory(torch.device("cpu")) or 0) < 2**50


@pytest.mark.parametrize(
    ("command", "arguments", "during"),
    [
        ("evaluate", ["agent=DynamicMaze-TRM-v0"], "hrm_agent.evaluate.load_agent"),
        ("watch", ["agent=DynamicMaze-TRM-v0"], "hrm_agent.watch.load_agent"),
        ("shifts", ["agent=DynamicMaze-TRM-v0"], "hrm_agent.shifts.load_agent"),
        ("export", ["agent=DynamicMaze-TRM-v0"], "hrm_agent.agents.onnx.load_agent"),
        ("solve", ["model=run"], "hrm_agent.launch.solve.find_named"),
        ("sweep_table", ["folder=."], "hrm_agent.launch.sweep_table.existing_folder"),
    ],
)
def test_ctrl_c_ends_a_command_in_one_line(
    command: str,
    arguments: list[str],
    during: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(during, interrupted)
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, command, *arguments)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.root.handlers)
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "train", *TINY_RUN)
    logging.root.handlers[:] = handlers
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.endswith("; give another place with hydra.run.dir=FOLDER\n")
    assert line.count("\n") == 1
    assert list(files(tmp_path)) == [tmp_path / "runs"]


def test_options_are_texts_where_texts_are_expected_and_stand_for_others() -> None:
    given = ["agent=0", "level_set=null", "env='X-v0'", "env_options={rows: 6}", "env_options.cols=7", "out=of_${seed}"]
    options = parse_options([*given, "seed=3", "baselines=no", "stop=settled"], evaluate, "usage")
    assert (options["agent"], options["level_set"], options["env"], options["out"]) == ("0", None, "X-v0", "of_3")
    assert options["env_options"] == {"rows": 6, "cols": 7}
    assert (options["baselines"], options["stop"], options["episodes"]) == (False, "settled", 1000)


@pytest.mark.parametrize("given", ["segments=3", "hydra.job.name=mine"])
def test_a_single_run_is_composed_once_and_as_hydra_would(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has the configuration that was checked; Hydra would compose it twice more."""
    load, composed = ConfigLoaderImpl._load_configuration_impl, []
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl", lambda *args, **named: composed.append(1) or load(*args, **named)
    )

    def job() -> Any:
        """Hydra's whole configuration and the run's, and how often one was composed."""
        composed.clear()
        seen: list[Any] = []
        monkeypatch.setattr(sys, "argv", ["hrm_agent.train", given, f"hydra.run.dir={tmp_path / 'run'}"])
        runs.run_command(
            "train", lambda values: None, lambda cfg, folder: None,
            lambda run: seen.append((OmegaConf.to_container(HydraConfig.instance().cfg), run.values)) or 0.0, (),
        )  # fmt: skip
        shutil.rmtree(tmp_path / "run")
        return seen[0], len(composed)

    taken, times = job()
    monkeypatch.setattr(hydra_plugin, "composed_once", lambda own, config: nullcontext())
    assert (taken, times) == (job()[0], 1)
