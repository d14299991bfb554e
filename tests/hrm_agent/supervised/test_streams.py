"""A text read one token a step: the learner's windows and states, exact resume, and scores with the state carried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.parallel.processes import Processes
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.supervised import ModelConfig, build_model, load_model, save_model, streams
from hrm_agent.supervised.deep_supervision import SupervisedConfig
from hrm_agent.supervised.streams import StreamLearner, StreamSolver, check_single
from hrm_agent.supervised.tasks.base import Examples
from hrm_agent.supervised.tasks.corpus import Stream
from stack_cases import needs_kernels
from texts import CONTEXT, SPEC, make_carried, make_stream

ROWS, WINDOW = 5, 4
STILL: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-30, "weight_decay": 0.0, "warmup": 0, "ema": 0.0}
MOVING: dict[str, Any] = {"learning_rate": 1e-2, "warmup": 0, "ema": 0.9, "max_grad_norm": 1.0, "anneal": True}
CARRIES = ["full", "gate", "leak", "reset", "output"]


def make_learner(
    model: Policy | None = None, stream: Stream | None = None, threads: int = 1, **training: Any
) -> StreamLearner:
    config = SupervisedConfig(batch_size=ROWS, cross_entropy="softmax", **{**STILL, **training})
    model = make_carried() if model is None else model
    return StreamLearner(model, config, make_stream() if stream is None else stream, WINDOW, 0, Threads(threads))


@torch.no_grad()
def by_steps(model: Policy, tokens: Tensor, begins: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits `[k, B, V]` and the state after them, one step at a time from the beginning."""
    state, logits = model.initial_state(tokens.shape[1]), []
    for t in range(len(tokens)):
        decision = model.step(tokens[t], state, begins[t])
        state = decision.state
        logits.append(decision.logits)
    return torch.stack(logits), state


@pytest.mark.parametrize("works", [1, 5])
@pytest.mark.parametrize("carry", CARRIES)
def test_windows_follow_each_other_and_the_state_is_carried(carry: str, works: int) -> None:
    """Also over the end of the text and the beginnings of works: each row is read as by steps of the policy."""
    model, stream = make_carried(carry, segments=2), make_stream(35, works)
    learner, total = make_learner(model, stream), len(stream.inputs)
    first = learner.places.clone()
    gaps = first.diff() % total  # evenly over the text, from a drawn place
    assert (gaps - total / ROWS).abs().max() < 1
    windows = total // WINDOW + 2  # once around
    losses = [learner.step(0.0)["loss"] for _ in range(windows)]
    index = (first + torch.arange(windows * WINDOW)[:, None]) % total
    inputs, labels, begins = (torch.from_numpy(array)[index] for array in stream)
    begins[0] = True
    logits, state = by_steps(model, inputs, begins)
    for mine, theirs in zip(learner.state, state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    picked = logits.log_softmax(-1).gather(-1, labels.long()[..., None])[..., 0]
    expected = -picked.unflatten(0, (windows, WINDOW)).mean((1, 2))
    torch.testing.assert_close(torch.tensor(losses), expected.to(torch.float64).float(), rtol=1e-4, atol=1e-4)
    assert (learner.steps, learner.seen) == (windows, windows * ROWS)


@pytest.mark.parametrize("time_gradient", ["bptt", "detached"])
def test_the_gradient_is_that_of_the_window(time_gradient: str) -> None:
    """Through the window where it is to flow, and never into the one before."""
    model = make_carried("full", time_gradient=time_gradient)
    learner = make_learner(model)
    learner.step(0.0)
    state = tuple(s.clone().requires_grad_() for s in learner.state)
    inputs, labels, begins = learner._windows()
    learner.step(0.0)
    found = [p.grad for p in learner.parameters]
    total = torch.zeros(())
    for t in range(WINDOW):
        carried = tuple(s.detach() for s in state) if time_gradient == "detached" and t else state
        decision = model.step(inputs[t], carried, begins[t])
        state = decision.state
        total = total + torch.nn.functional.cross_entropy(decision.logits, labels[t].long(), reduction="sum")
    expected = torch.autograd.grad(total / (WINDOW * ROWS), learner.parameters, allow_unused=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)  # of the value head
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not any(s.requires_grad for s in learner.state)


def test_threads_change_nothing_but_rounding() -> None:
    learners = [make_learner(threads=threads, **MOVING) for threads in (1, 2)]
    for learner in learners:
        for _ in range(3):
            learner.step(0.0)
    for one, two in zip(*(learner.parameters for learner in learners), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adam_atan2"])
@pytest.mark.parametrize("carry", ["gate", "reset"])
def test_five_steps_and_five_more_equal_ten(carry: str, optimizer: str) -> None:
    """Bit for bit: weights, averages, moments, states and places."""
    whole = make_learner(make_carried(carry), optimizer=optimizer, **MOVING)
    for step in range(10):
        whole.step(step / 10)
        if step == 4:
            saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}, whole.metadata()
    resumed = make_learner(make_carried(carry, seed=1), optimizer=optimizer, **MOVING)
    resumed.restore(*saved)
    for step in range(5, 10):
        resumed.step(step / 10)
    assert resumed.metadata() == whole.metadata()
    ours, theirs = resumed.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("core", ["trm", "gru", "lstm"])
def test_states_keep_their_dtype_in_bfloat16(core: str) -> None:
    learner = make_learner(make_carried("full", core=core), precision="bfloat16", **MOVING)
    before = learner.state
    assert np.isfinite(learner.step(0.0)["loss"])
    assert [s.dtype for s in learner.state] == [s.dtype for s in before] == [torch.float32] * len(before)


FORGED = {
    "places": lambda t: t["places"].add_(10_000),
    "negative places": lambda t: t["places"].sub_(10_000),
    "rows": lambda t: t.update({"state/0": t["state/0"][:2]}),
    "no state": lambda t: t.pop("state/1"),
    "another": lambda t: t.update({"more": torch.zeros(1)}),
    "not finite": lambda t: t["state/0"].fill_(float("nan")),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_checkpoint_that_no_run_can_have_saved_is_refused_as_a_whole(name: str) -> None:
    learner = make_learner(**MOVING)
    learner.step(0.0)
    tensors = {key: tensor.clone() for key, tensor in learner.tensors().items()}
    FORGED[name](tensors)
    before = {key: tensor.clone() for key, tensor in learner.tensors().items()}
    with pytest.raises(ValueError):
        learner.restore(tensors, {"steps": 9, "seen": 9})
    assert learner.steps == 1
    assert all(torch.equal(before[key], tensor) for key, tensor in learner.tensors().items())


def test_the_averaged_weights_are_those_inside_the_block_alone() -> None:
    learner = make_learner(**MOVING)
    learner.step(0.0)
    own = [p.detach().clone() for p in learner.parameters]
    with learner.averaged() as model:
        assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), own, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(learner.parameters, own, strict=True))


# Scores


def text(windows: int, seed: int = 0) -> Examples:
    """Windows of a text, one after the other."""
    tokens = np.random.default_rng(seed).integers(0, 8, windows * CONTEXT + 1, dtype=np.int32)
    shape = (windows, CONTEXT)
    return Examples(tokens[:-1].reshape(shape), tokens[1:].reshape(shape), np.zeros(windows, np.int32))


def solve(model: Policy, examples: Examples, segments: int = 1, works: tuple[int, ...] = (), **more: Any) -> Any:
    begins = np.isin(np.arange(len(examples)), [0, *works])
    return StreamSolver(model, segments, begins, more.pop("cross_entropy", "softmax"), **more)(examples)


@pytest.mark.parametrize("carry", ["gate", "output", "reset"])
@pytest.mark.parametrize("cross_entropy", ["softmax", "stablemax"])
def test_scores_equal_a_policy_that_reads_step_by_step(carry: str, cross_entropy: str) -> None:
    """Through the whole text, with a new state where a work begins; for each number of segments."""
    model, examples = make_carried(carry, segments=2), text(9)
    answers = solve(model, examples, segments=2, works=(4,), cross_entropy=cross_entropy)
    assert model.segments == 2
    assert answers.tokens.shape == answers.nats.shape == (2, 9, CONTEXT)
    begins = np.zeros((9, CONTEXT), bool)
    begins[[0, 4], 0] = True
    for segments in (1, 2):
        model.segments = segments
        logits, _ = by_steps(model, *(torch.from_numpy(array.reshape(-1, 1)) for array in (examples.inputs, begins)))
        scores = logits[:, 0].double().numpy()
        if cross_entropy == "softmax":
            weights = np.exp(scores - scores.max(-1, keepdims=True))
        else:
            weights = np.where(scores >= 0, scores + 1, 1 / (1 - np.minimum(scores, 0)))
        probabilities = weights / weights.sum(-1, keepdims=True)
        picked = np.take_along_axis(probabilities, examples.labels.reshape(-1, 1), 1)[:, 0]
        np.testing.assert_allclose(answers.nats[segments - 1].ravel(), -np.log(picked), rtol=1e-3, atol=1e-4)
        clear = np.sort(scores)[:, -1] - np.sort(scores)[:, -2] > 1e-3
        assert (answers.tokens[segments - 1].ravel() == scores.argmax(-1))[clear].all()


def test_lanes_change_no_score_of_a_policy_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a state they change nothing; what leaks away within the warm-up, next to nothing."""
    monkeypatch.setattr(streams, "WARM_UP", 60)
    examples = text(23)
    for carry, tolerance in (("reset", 1e-5), ("leak", 2e-2)):
        whole, lanes = (solve(make_carried(carry), examples, works=(11,), lanes=lanes) for lanes in (1, 2))
        assert np.abs(whole.nats - lanes.nats).max() < tolerance
    threaded = solve(make_carried("leak"), examples, works=(11,), lanes=2, threads=Threads(2))
    np.testing.assert_allclose(threaded.nats, lanes.nats, rtol=1e-3, atol=1e-3)


def test_the_past_counts() -> None:
    examples = text(50)
    changed = Examples(examples.inputs.copy(), examples.labels, examples.puzzle_identifiers)
    changed.inputs[0, 0] = (changed.inputs[0, 0] + 1) % 8
    before, after = (solve(make_carried("full"), given) for given in (examples, changed))
    assert np.abs(before.nats[0, 0, 1:] - after.nats[0, 0, 1:]).max() > 1e-3
    same, forgotten = (solve(make_carried("reset"), given) for given in (examples, changed))
    assert np.array_equal(same.nats[0, :, 1:], forgotten.nats[0, :, 1:])


@needs_kernels
def test_the_kernels_read_and_learn_the_same() -> None:
    found = []
    for path in ("plain", "fused"):
        model = make_carried("gate", segments=2)
        assert recurrence.use(model, path) == path
        learner = make_learner(model)
        losses = [learner.step(0.0)["loss"] for _ in range(5)]
        found.append((solve(model, text(60), segments=2).nats, losses, [p.grad for p in learner.parameters]))
    plain, fused = found
    np.testing.assert_allclose(plain[0], fused[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(plain[1], fused[1], rtol=1e-4)
    for one, other in zip(plain[2], fused[2], strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# Files and settings


def test_a_saved_model_reads_as_before(tmp_path: Path) -> None:
    config = ModelConfig("gru", {"memory_size": 8}, 16, carry="full", segments=2, time_gradient="detached")
    model = build_model(config, SPEC)
    assert isinstance(model, Policy)
    save_model(tmp_path, model, config, SPEC)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Policy)
    assert (loaded.config.segments, loaded.config.time_gradient, loaded.config.carry) == (2, "detached", "full")
    examples = text(20)
    assert np.array_equal(solve(model, examples).nats, solve(loaded, examples).nats)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"carry": "never"}, "carry='never': expected auto or one of reset"),
        ({"carry": "gate", "core": "gru"}, "carry=gate"),
        ({"carry": "full", "patch_size": 2}, "model.patch_size=2 with model.carry=full: expected 1"),
        ({"carry": "full", "crop": 1}, "model.crop=1 with model.carry=full: expected 0"),
        ({"carry": "full", "puzzle_embedding_size": 4}, "model.puzzle_embedding_size=4 with model.carry=full"),
        ({"carry": "full", "core": "trm", "core_options": {"H_cycles": 2}}, "no gradient reaches the carried state"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        build_model(ModelConfig(**{"core": "trm", "hidden_size": 16, **config}), SPEC)
    assert message in str(raised.value)


def test_several_processes_are_refused() -> None:
    class Two(Processes):
        world_size = 2

    with pytest.raises(ValueError, match=r"model.carry trains in one process, not in 2 of torchrun"):
        check_single(object.__new__(Two))
