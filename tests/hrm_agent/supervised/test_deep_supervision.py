"""Deep supervision: one step is what the papers say, whatever the machine makes of the batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.algos.optim import SignSGD
from hrm_agent.algos.update import Part
from hrm_agent.benchmarks.parity import TOLERANCE, Reference
from hrm_agent.files.reading import CheckpointError
from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised import ModelConfig, PuzzleModel, load_model, puzzle_loss, save_model
from hrm_agent.supervised.deep_supervision import DeepSupervision, SupervisedConfig, to_batch
from hrm_agent.supervised.evaluation import Solver, evaluate_model
from hrm_agent.supervised.files import build_model, check_answerable
from hrm_agent.supervised.published import load_published, model_from_published, name_from_published
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.base import Examples
from hrm_agent.tensors.gradients import NonFiniteNumbers
from published_files import FOLDER, needs_published
from puzzles import SPEC, TRM, Copying, make_model

PLAIN = SupervisedConfig(batch_size=5, max_segments=3, learning_rate=1e-2, warmup=0, weight_decay=0.1, ema=0.9)


def learner(config: SupervisedConfig = PLAIN, threads: int = 1, **model: Any) -> DeepSupervision:
    return DeepSupervision(make_model(**model), config, Copying().draw, 0, Threads(threads))


def weights(learner: DeepSupervision) -> list[Tensor]:
    return [p.detach().clone() for p in learner.model.parameters()]


def assert_same(one: list[Tensor], other: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerance or {"rtol": 0.0, "atol": 0.0})


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def plain_step(model: PuzzleModel, state: Any, batch: dict[str, Tensor], count: int) -> tuple[Any, list[Tensor]]:
    """The recipe in its plainest form: the whole batch at once, autograd through one segment."""
    model.zero_grad(set_to_none=True)
    state, logits, q_halt, _ = model(state, batch)
    (puzzle_loss(logits, q_halt, batch["labels"]).total / count).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else dense(p.grad) for p in model.parameters()]
    return tuple(s.detach() for s in state), gradients


def test_latents_are_carried_between_segments_without_gradient() -> None:
    """Three steps without a halt: gradients and latents are those of three segments, each trained by itself."""
    config = dataclasses.replace(PLAIN, exploration=1.0, max_segments=100)
    ours = learner(config)
    model = make_model()
    with torch.no_grad():
        for m in (ours.model, model):
            m.halting_head.bias.fill_(-100.0)  # no puzzle halts
    examples = Copying().draw(np.random.default_rng(0), 5)
    batch, state = to_batch(examples, torch.device("cpu")), model.initial_state(5)
    for _ in range(3):
        model.load_state_dict(ours.model.state_dict())
        ours.step(0.0)
        state, gradients = plain_step(model, state, batch, 5)
        assert_same([dense(p.grad) for p in ours.parameters], gradients, rtol=1e-5, atol=1e-7)
        assert_same(list(ours.state), list(state), rtol=1e-5, atol=1e-6)
    assert ours.seen == 5
    assert ours.segments.tolist() == [3] * 5


@pytest.mark.parametrize("core", ["trm", "hrm"])
def test_the_split_of_a_batch_changes_nothing(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halting = "q_learning" if core == "hrm" else "halt_only"
    config = dataclasses.replace(PLAIN, halting=halting)
    whole = learner(config, core=core)
    monkeypatch.setattr(PuzzleModel, "chunk_size", 2)
    parts = learner(config, threads=2, core=core)
    for _ in range(4):
        one, other = whole.step(0.0), parts.step(0.0)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert_same(weights(whole), weights(parts), rtol=1e-4, atol=1e-6)


def test_other_rows_may_be_written_before_the_gradient_of_these_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As threads do. A GRU's gradient needs the latent that it was given, a TRM's does not."""
    torch.manual_seed(0)
    model = build_model(ModelConfig("gru", {"memory_size": 8}, 8), SPEC)
    ours = DeepSupervision(model, PLAIN, Copying().draw, 0, Threads(1))
    thought = []

    def loss_while_another_thread_writes(*arguments: Any) -> Any:
        with torch.no_grad():
            for latent in ours.state:
                latent[4:] += 1.0
        thought.append(True)
        return puzzle_loss(*arguments)

    monkeypatch.setattr("hrm_agent.supervised.deep_supervision.puzzle_loss", loss_while_another_thread_writes)
    ours.step(0.0)
    assert thought


def test_puzzles_at_once_change_nothing() -> None:
    whole, parts = learner(), learner(dataclasses.replace(PLAIN, chunk_size=2))
    calls: list[int] = []
    parts.model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[1]["inputs"])))
    for _ in range(3):
        assert whole.step(0.0) == pytest.approx(parts.step(0.0), rel=1e-4, abs=1e-6)
    assert max(calls) == 2
    assert_same(weights(whole), weights(parts), rtol=1e-4, atol=1e-6)


def test_what_has_halted_is_replaced_and_nothing_else() -> None:
    ours = learner(dataclasses.replace(PLAIN, batch_size=32, max_segments=4, learning_rate=1e-9))
    ours.step(0.0)
    halted = ours.halted.clone()
    assert 0 < halted.sum() < 32
    before = {name: value.clone() for name, value in ours.batch.items()}
    segments, seen = ours.segments.clone(), ours.seen
    ours.step(0.0)
    same = (before["inputs"] == ours.batch["inputs"]).all(1)
    assert same[~halted].all()
    assert not same[halted].all()
    assert ours.seen == seen + int(halted.sum())
    assert (ours.segments[halted] == 1).all()
    assert (ours.segments[~halted] == segments[~halted] + 1).all()
    # The replaced have thought one segment from a fresh latent.
    new = {name: value[halted] for name, value in ours.batch.items()}
    with torch.no_grad():
        state = ours.model(ours.model.initial_state(int(halted.sum())), new)[0]
    assert_same([s[halted] for s in ours.state], list(state), rtol=1e-3, atol=1e-3)


def test_no_puzzle_is_thought_about_for_longer_than_allowed() -> None:
    ours = learner(dataclasses.replace(PLAIN, exploration=1.0))
    with torch.no_grad():
        ours.model.halting_head.bias.fill_(-100.0)
    for t in range(7):
        ours.step(0.0)
        assert ours.halted.all() == (t % 3 == 2)


def test_exploration_holds_back_the_wish_to_halt() -> None:
    """Where every puzzle explores, none halts before the second segment, and some much later."""
    ours = learner(dataclasses.replace(PLAIN, batch_size=400, exploration=1.0, max_segments=8, learning_rate=1e-9))
    with torch.no_grad():
        ours.model.halting_head.bias.fill_(100.0)
    ours.step(0.0)
    assert not ours.halted.any()
    ours.step(0.0)
    assert 0.05 < ours.halted.double().mean() < 0.3  # one in seven draws 2
    eager = learner(dataclasses.replace(PLAIN, exploration=0.0))
    with torch.no_grad():
        eager.model.halting_head.bias.fill_(100.0)
    eager.step(0.0)
    assert eager.halted.all()


def test_the_target_of_thinking_on() -> None:
    """HRM: the better choice one segment later; when there is no later segment than that, halting."""
    ours = learner(dataclasses.replace(PLAIN, halting="q_learning", max_segments=3), core="hrm")
    ours._replace_halted()
    ours.segments = torch.tensor([0, 1, 2, 2, 0])
    with torch.no_grad():
        state = ours.model(ours.state, ours.batch)[0]
        _, _, q_halt, q_continue = ours.model(state, ours.batch)
    target = ours._continue_target(state, ours.batch, slice(0, 5))
    better = torch.maximum(q_halt, q_continue)
    last = torch.tensor([False, False, True, True, False])
    torch.testing.assert_close(target, torch.where(last, q_halt, better).sigmoid())
    assert (better > q_halt).any()


@needs_published
@pytest.mark.parametrize("name", ["hrm", "trm_attention", "trm_mlp"])
def test_the_gradient_of_a_training_step_is_the_authors(name: str) -> None:
    """Through the very step that training takes, its threads and its sums."""
    reference = Reference(FOLDER / f"{name}.safetensors")
    kind = reference.config["kind"]
    model = model_from_published(reference.config)
    load_published(model, reference.under("weights"), kind)
    given = Examples(*(reference[key].numpy() for key in ("inputs", "labels", "puzzle_identifiers")))
    count = len(given)
    config = SupervisedConfig(batch_size=count, exploration=0.0, learning_rate=1e-12, warmup=0, ema=0.0)
    ours = DeepSupervision(model, config, lambda generator, n: given, 0, Threads(2))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    measured = ours.step(0.0)
    assert measured["answers_loss"] * count == pytest.approx(float(reference["loss/stablemax"]), abs=TOLERANCE)
    assert measured["q_halt_loss"] * count == pytest.approx(float(reference["loss/q_halt"]), abs=TOLERANCE)
    named = dict(model.named_parameters())
    expected = reference.under("grad")
    assert len(expected) > 5
    for published, gradient in expected.items():
        if published.endswith("puzzle_emb.weights"):
            continue  # none in the files
        found = named[name_from_published(published, kind)].grad
        found = torch.zeros_like(gradient) if found is None else found
        assert (found * count - gradient).abs().max() <= TOLERANCE, published
    assert before.keys() == model.state_dict().keys()


def test_going_on_from_a_checkpoint_changes_nothing() -> None:
    config = dataclasses.replace(PLAIN, halting="q_learning", anneal=True, warmup=3)
    whole = learner(config, core="hrm")
    for t in range(8):
        whole.step(t / 8)
    first = learner(config, core="hrm")
    for t in range(4):
        first.step(t / 8)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}, first.metadata()
    second = learner(config, core="hrm", seed=1)
    second.restore(*saved)
    for t in range(4, 8):
        second.step(t / 8)
    assert whole.metadata() == second.metadata()
    one, other = whole.tensors(), second.tensors()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_checkpoint_of_another_batch_is_refused() -> None:
    ours = learner()
    ours.step(0.0)
    other = learner(dataclasses.replace(PLAIN, batch_size=4))
    with pytest.raises(ValueError, match="a batch of 5 puzzles, expected 4"):
        other.restore(ours.tensors(), ours.metadata())


def test_numbers_that_are_not_finite_touch_no_weight() -> None:
    from hrm_agent.tensors.gradients import NonFiniteNumbers

    ours = learner()
    ours.step(0.0)
    with torch.no_grad():
        ours.model.lm_head.weight[0, 0] = float("nan")
    before = weights(ours)
    with pytest.raises(NonFiniteNumbers):
        ours.step(0.0)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(weights(ours), before, strict=True))


@pytest.mark.thorough
def test_it_learns_and_says_so() -> None:
    ours = learner(dataclasses.replace(PLAIN, batch_size=64, ema=0.9, weight_decay=0.0), puzzles=0)
    first = [ours.step(0.0) for _ in range(3)][-1]
    for _ in range(150):
        last = ours.step(0.0)
    assert last["answers_loss"] < first["answers_loss"] / 4
    with ours.averaged() as model:
        report = evaluate_model(Solver(model, 3), Copying(), "test", 100)
    assert report["cells"] > 0.9
    assert report["exact"] <= report["cells"]
    assert report["exact_ci95"][0] <= report["exact"] <= report["exact_ci95"][1]
    assert len(report["curves"]["exact"]) == 3
    assert report["curves"]["exact"][-1] == report["exact"]


@pytest.mark.parametrize("path", ["fused", pytest.param("compiled", marks=pytest.mark.slow)])
def test_fast_paths_learn_the_same(path: str) -> None:
    if not recurrence.available(path):
        pytest.skip("no C++ compiler")
    plain, fast = (learner(size=16, inner_size=16, mixing="attention", num_heads=1) for _ in range(2))
    assert recurrence.use(fast.model, path) == path
    for _ in range(3):
        assert plain.step(0.0) == pytest.approx(fast.step(0.0), rel=1e-4, abs=1e-6)
    assert_same(weights(plain), weights(fast), rtol=1e-3, atol=1e-5)
    assert set(fast.model.state_dict()) == set(plain.model.state_dict())
    with fast.averaged() as model:  # of any number of puzzles, without compiling anew
        assert len(Solver(model, 2)(Copying().examples("test", 7)).last) == 7
    assert (fast.model.core.net._compiled_call_impl is not None) == (path == "compiled")


def test_learning_rates_rise_and_fall_as_they_are_told() -> None:
    ours = learner(dataclasses.replace(PLAIN, warmup=4, anneal=True))
    told = [ours.step(done)["learning_rate"] for done in (0.0, 0.0, 0.0, 0.0, 0.0, 0.5)]
    assert told == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.005])
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(told[-1])
    assert ours.puzzle_optimizer is not None
    assert ours.puzzle_optimizer.param_groups[0]["lr"] == pytest.approx(PLAIN.puzzle_learning_rate / 2)


def test_averages_come_and_go() -> None:
    ours = learner()
    for _ in range(5):
        ours.step(0.0)
    before, averages = weights(ours), [a.clone() for a in ours.averages]
    with ours.averaged() as model:
        inside = [p.detach().clone() for p in ours.weights]
        assert model is ours.model
    assert_same(inside, averages)
    assert_same(weights(ours), before)
    assert any(not torch.equal(a, b) for a, b in zip(inside, list(ours.weights), strict=True))


def test_averages_follow_their_formula() -> None:
    ours = learner(dataclasses.replace(PLAIN, ema=0.3))
    expected = [p.detach().double().clone() for p in ours.weights]
    for t in range(1, 6):
        ours.step(0.0)
        decay = min(0.3, t / (9 + t))
        for e, p in zip(expected, ours.weights, strict=True):
            e.mul_(decay).add_((1 - decay) * p.detach().double())
    assert_same([a.double() for a in ours.averages], expected, rtol=1e-5, atol=1e-6)


def test_only_the_puzzles_of_a_batch_move_and_by_one_size() -> None:
    weight = torch.nn.Embedding(6, 3, sparse=True)
    before = weight.weight.detach().clone()
    optimizer = SignSGD(weight.parameters(), lr=0.1, weight_decay=0.5)
    ids = torch.tensor([4, 1, 4])
    slopes = torch.tensor([[1.0, -2.0, 0.0], [5.0, 5.0, -5.0], [-3.0, 1.0, 0.0]])
    (weight(ids) * slopes).sum().backward()
    optimizer.step()
    expected = before.clone()
    expected[1] = before[1] * 0.95 - 0.1 * torch.tensor([1.0, 1.0, -1.0])
    expected[4] = before[4] * 0.95 - 0.1 * torch.tensor([-1.0, -1.0, 0.0])  # signs of the sums over the batch
    torch.testing.assert_close(weight.weight.detach(), expected)


def test_sign_sgd_with_a_dense_gradient_is_the_same() -> None:
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        weight = torch.nn.Embedding(3, 4, sparse=sparse)
        optimizer = SignSGD(weight.parameters(), lr=0.1, weight_decay=0.5)
        weight(torch.tensor([0, 1, 2])).square().sum().backward()
        optimizer.step()
        ends.append(weight.weight.detach())
    torch.testing.assert_close(*ends)


class TestSolver:
    def test_halting_gives_the_answer_at_which_it_halted_and_thinks_no_further(self) -> None:
        model = make_model().eval()
        with torch.no_grad():
            model.halting_head.weight.mul_(20)
        examples = Copying().examples("test", 50)
        fixed, calls = Solver(model, 5)(examples), []
        model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[1]["inputs"])))
        halted = Solver(model, 5, "halt_only")(examples)
        assert len(set(halted.segments.tolist())) > 1
        assert sum(calls) == halted.segments.sum() < 250
        for n, segments in enumerate(halted.segments):
            assert (fixed.q_halt[: segments - 1, n] <= 0).all()
            assert fixed.q_halt[segments - 1, n] > 0 or segments == 5
            assert (halted.tokens[segments - 1 :, n] == fixed.tokens[segments - 1, n]).all()

    def test_the_labels_are_not_shown(self) -> None:
        model, examples = make_model().eval(), Copying().examples("test", 7)
        other = Examples(examples.inputs, examples.labels[::-1].copy(), examples.puzzle_identifiers)
        assert (Solver(model, 2)(examples).tokens == Solver(model, 2)(other).tokens).all()

    def test_the_split_of_the_puzzles_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, examples = make_model().eval(), Copying().examples("test", 23)
        whole = Solver(model, 3)(examples)
        monkeypatch.setattr("hrm_agent.supervised.evaluation.EVALUATION_BATCH", 4)
        parts = Solver(model, 3, threads=Threads(2))(examples)
        np.testing.assert_allclose(whole.q_halt, parts.q_halt, atol=1e-5)
        assert (whole.tokens == parts.tokens).mean() > 0.99

    def test_the_report_on_halting_is_what_halting_gives(self) -> None:
        model, task = make_model().eval(), Copying()
        with torch.no_grad():
            model.halting_head.weight.mul_(20)
        for rule in ("halt_only", "q_learning"):
            report = evaluate_model(Solver(model, 4), task, "test", 60, rule)
            halted = Solver(model, 4, rule)(task.examples("test", 60))
            scores = task.score(task.examples("test", 60), halted.last)
            assert report["halted"]["cells"] == pytest.approx(scores["cells"].mean())
            assert report["halted"]["segments"] == pytest.approx(halted.segments.mean())


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    config = ModelConfig("trm", {**TRM, "positions": "none"}, 8, 8, slots=1)
    torch.manual_seed(0)
    model = build_model(config, SPEC).eval()
    save_model(tmp_path, model, config, SPEC)
    again = load_model(tmp_path)
    examples = Copying().examples("test", 5)
    assert (Solver(model, 2)(examples).q_halt == Solver(again, 2)(examples).q_halt).all()
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    with pytest.raises(ValueError, match="no puzzle model"):
        load_model(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("batch_size", 0), ("max_segments", 0), ("learning_rate", 0.0), ("halting", "never"), ("ema", 1.0),
     ("exploration", 1.5), ("cross_entropy", "hinge"), ("precision", "float8"), ("warmup", -1)],
)  # fmt: skip
def test_settings_out_of_range_are_named(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"training.{setting}="):
        dataclasses.replace(PLAIN, **{setting: value})


def test_halved_precision_reaches_every_weight() -> None:
    """Early cycles cast the weights without gradient; the last one must not reuse that."""
    options = {"layers": 1, "H_cycles": 2, "L_cycles": 1, "mixing": "attention", "inner_size": 8, "num_heads": 1}
    gradients = []
    for precision in ("float32", "bfloat16"):
        ours = learner(dataclasses.replace(PLAIN, precision=precision), cycle_gradient="last", **options)
        ours.step(0.0)
        gradients.append({name: p.grad for name, p in ours.model.named_parameters() if name.startswith("core.")})
    for name, exact in gradients[0].items():
        found = gradients[1][name]
        assert exact is not None
        assert found is not None, name
        assert torch.nn.functional.cosine_similarity(exact.flatten(), found.flatten(), dim=0) > 0.98, name


def test_cells_that_a_model_crops_may_not_be_asked_for() -> None:
    task = build_task("maze", {"rows": 3, "cols": 3})
    config = ModelConfig("trm", {**TRM, "positions": "none"}, 8, crop=1, patch_size=2)
    with pytest.raises(ValueError, match=r"model.crop=1.*task.label_border=false"):
        check_answerable(build_model(config, task.spec), task)
    fitting = build_task("maze", {"rows": 3, "cols": 3, "label_border": False})
    check_answerable(build_model(config, fitting.spec), fitting)


def test_a_gradient_of_puzzles_that_is_not_finite_touches_no_weight() -> None:
    ours = learner()
    ours.step(0.0)
    assert ours.model.puzzles is not None
    puzzles = ours.model.puzzles.weight
    bad = torch.sparse_coo_tensor([[1]], [[float("nan")] * 8], puzzles.shape)
    gradients = tuple(bad if p is puzzles else torch.zeros_like(p) for p in ours.parameters)
    before = weights(ours)
    with pytest.raises(NonFiniteNumbers):
        ours._take_step([Part(gradients, {"loss": torch.zeros(())})], 1.0)
    assert_same(weights(ours), before)
