"""Compare this project's models with numbers computed by the authors' own code.

`python -m hrm_agent.parity FILE...` loads each file's weights under their published names, runs its segments,
loss and gradients (or an agent's environment steps), and prints the largest absolute error of each group.

Recursion amplifies rounding: some of these files' numbers, recomputed in double precision, differ from the files by
4e-3 after three segments, and so do ours on processors whose matrix products round in another order. So every segment,
and every environment step, starts from the latents in the file, and rounding is amplified over one of them only. What
comes of starting each from our own latents is printed below, beside the same in double precision, and decides nothing.

`--path PATH` checks a fast path (`hrm_agent.recurrence`). The tolerance of a group is 1e-4, or, of fast paths, twice
the error of a reference where that is more: eager torch in double precision (`fused`, `compiled`) or in bfloat16
(`fused_bf16`).

Exit code: 0 where every error is at most 1e-4, 1 where one is above, 2 where a file cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hrm_agent.names.values import printable
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.recurrence import PATHS, check_kernel, use
from hrm_agent.supervised.losses import puzzle_loss
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.published import load_published, model_from_published, name_from_published

TOLERANCE = 1e-4
Module = TypeVar("Module", bound=nn.Module)
KINDS = ("hrm", "trm", "hrm_agent")
ACTIONS = 4
AGENT_EPISODE_STARTS = {2: (0,)}
"""Environment step -> rows that begin a new episode there; at step 0 all do."""

Seeds = tuple[Tensor, Tensor]
"""Latents of the last token, high and low, each float[B, D]: what the original HRM-Agent carries."""

AgentStep = Callable[[Tensor, Seeds | None, Tensor], tuple[Tensor, Seeds]]
"""(observation int[B, L], seeds or None at first, episode_start bool[B]) -> (Q float[B, 4], next seeds)."""

MakeAgent = Callable[[Mapping[str, Any], Mapping[str, Tensor]], AgentStep]
"""(published config, weights under their published names) -> one environment step of the agent."""


class Reference:
    """A file's configuration and tensors.

    Raises:
        ValueError: the file is missing, is not a safetensors file, or has no usable config.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"not a readable safetensors file ({reason}); give a parity file") from None
        try:
            self.config: dict[str, Any] = json.loads(metadata["config"])
            kind = self.config["kind"]
        except (KeyError, TypeError, json.JSONDecodeError):
            raise ValueError("its metadata has no JSON 'config' with a 'kind'; give a parity file") from None
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; expected one of: {', '.join(KINDS)}")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"it has no tensor {name!r}; give a whole parity file")
        return self.tensors[name]

    def under(self, folder: str) -> dict[str, Tensor]:
        """The tensors whose name begins with `folder/`, without it."""
        start = folder + "/"
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


class Errors:
    """The largest absolute error of each group, in order of first comparison."""

    def __init__(self) -> None:
        self.groups: dict[str, float] = {}

    def compare(self, group: str, ours: Tensor, theirs: Tensor) -> None:
        """Add a pair of tensors to a group; a NaN error counts as infinite."""
        if ours.numel() != theirs.numel():
            raise ValueError(
                f"{group}: the file's shape {tuple(theirs.shape)} is not {tuple(ours.shape)}; "
                "give a parity file whose config fits its tensors"
            )
        difference = (ours.detach().double().reshape(-1) - theirs.double().reshape(-1)).abs()
        largest = difference.nan_to_num(nan=torch.inf).max().item() if difference.numel() else 0.0
        self.groups[group] = max(self.groups.get(group, 0.0), largest)

    @property
    def largest(self) -> float:
        return max(self.groups.values())


@dataclass(frozen=True)
class Numerics:
    """How a file's numbers are recomputed.

    Args:
        path: of the stacks of blocks, see `hrm_agent.recurrence.PATHS`.
        dtype: of weights and latents.
        autocast: matrix products in bfloat16.
        teacher_forced: every segment and every environment step starts from the file's latents, not from our own.
    """

    path: str = "plain"
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    teacher_forced: bool = False

    def prepare(self, module: Module) -> Module:
        """Set a module's path and dtype, in place."""
        if use(module, self.path) != self.path:
            raise ValueError(f"no part of this model has the path {self.path}; use --path plain")
        return module.to(self.dtype)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if self.autocast else nullcontext()


PLAIN = Numerics(teacher_forced=True)
FREE = Numerics(), Numerics(dtype=torch.float64)
"""Every segment starts from our own latents after the one before."""
DOUBLE = Numerics(dtype=torch.float64, teacher_forced=True)
BFLOAT16 = Numerics(autocast=True, teacher_forced=True)
REFERENCES = {"fused": DOUBLE, "compiled": DOUBLE, "fused_bf16": BFLOAT16}


def compare_file(path: Path, make_agent: MakeAgent | None = None, numerics: Numerics = PLAIN) -> Errors:
    """Run what a file describes and compare.

    Args:
        path: a parity file.
        make_agent: for files of kind `hrm_agent`, how to build the agent; by default `published_agent`.
        numerics: how the numbers are computed; an agent of `make_agent` is used as it is.

    Raises:
        ValueError: the file cannot be used.
    """
    reference = Reference(path)
    if reference.config["kind"] == "hrm_agent":
        make = make_agent or (lambda config, weights: published_agent(config, weights, numerics))
        return _compare_agent(reference, make, numerics)
    return _compare_puzzle_model(reference, numerics)


def published_policy(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Policy:
    """The original HRM-Agent (arXiv 2510.22832) as this project's policy, with the authors' weights.

    It is the policy of `+experiment=hrm_agent_maze`: HRM with a prefix token, `last_token` carry, `halt_max_steps`
    segments, Q-values read from the last token. The observation is a sequence of ids, a grid of one row.

    Raises:
        ValueError: a weight is unknown, missing or of another shape.
    """
    model = model_from_published(config)  # checks the weights, and names them as the core does
    load_published(model, weights, "hrm")
    hidden, positions = int(config["hidden_size"]), config["pos_encodings"]
    core = {name: config[name] for name in ("num_heads", "H_cycles", "L_cycles", "expansion", "H_layers", "L_layers")}
    settings = PolicyConfig(
        core="hrm",
        core_options={**core, "positions": "none" if positions == "learned" else positions},
        hidden_size=hidden,
        carry="last_token",
        segments=int(config["halt_max_steps"]),
        time_gradient="detached",
        readout="last",
        heads="q",
        encoder=EncoderConfig(positions="learned" if positions == "learned" else "none", prefix=model.prefix),
    )
    ids = gym.spaces.Box(0, int(config["vocab_size"]) - 1, (1, int(config["seq_len"])), np.int64)
    policy = Policy(settings, ids, gym.spaces.Discrete(ACTIONS))
    own = policy.state_dict()
    own |= {f"core.{name}": tensor for name, tensor in model.core.state_dict().items()}
    own["policy_head.weight"] = model.lm_head.weight[:ACTIONS]
    own["policy_head.bias"] = torch.zeros(ACTIONS)  # the published head has none
    # Published embeddings are small and scaled by sqrt(D) in the model; ours have the scale in them.
    encoder = "encoder.inner." if positions == "learned" else "encoder."
    grid = f"{encoder}inner.embedding" if model.prefix else f"{encoder}embedding"
    own[grid] = torch.cat([model.tokens.weight * model.scale, torch.zeros(1, hidden)])  # and "outside the grid"
    if model.puzzles is not None:
        slots = torch.nn.functional.pad(model.puzzles.weight[0], (0, model.padding))
        own[f"{encoder}prefix"] = slots.view(model.prefix, hidden) * model.scale
    if model.learned_positions is not None:
        own["encoder.positions"] = model.learned_positions.weight * model.scale
    policy.load_state_dict(own)
    return policy.eval()


def published_agent(config: Mapping[str, Any], weights: Mapping[str, Tensor], numerics: Numerics = PLAIN) -> AgentStep:
    """`published_policy` as a function of one environment step."""
    policy = numerics.prepare(published_policy(config, weights))

    @torch.no_grad()
    def step(inputs: Tensor, seeds: Seeds | None, episode_start: Tensor) -> tuple[Tensor, Seeds]:
        kept = policy.initial_state(len(inputs)) if seeds is None else tuple(s.to(numerics.dtype) for s in seeds)
        with numerics.precision():
            decision = policy.step(inputs.unsqueeze(1), kept, episode_start)
        z_H, z_L = decision.state
        return decision.logits, (z_H, z_L)

    return step


def _compare_agent(reference: Reference, make_agent: MakeAgent, numerics: Numerics) -> Errors:
    step = make_agent(reference.config, reference.under("weights"))
    errors = Errors()
    seeds: Seeds | None = None
    steps = len({name.split("/")[0] for name in reference.tensors if name.startswith("step")})
    for t in range(max(steps, 1)):
        inputs = reference[f"step{t}/inputs"]
        episode_start = torch.full((len(inputs),), t == 0)
        episode_start[list(AGENT_EPISODE_STARTS.get(t, ()))] = True
        # Without teacher forcing our own seeds are carried on: an error anywhere shows in every later step.
        q_values, seeds = step(inputs, seeds, episode_start)
        errors.compare("q_values", q_values, reference[f"step{t}/q_values"])
        errors.compare("seed_h", seeds[0], reference[f"step{t}/next_seed_h"])
        errors.compare("seed_l", seeds[1], reference[f"step{t}/next_seed_l"])
        if numerics.teacher_forced:
            seeds = reference[f"step{t}/next_seed_h"], reference[f"step{t}/next_seed_l"]
    return errors


def _compare_puzzle_model(reference: Reference, numerics: Numerics) -> Errors:
    model = model_from_published(reference.config)
    load_published(model, reference.under("weights"), reference.config["kind"])
    numerics.prepare(model)
    # The published models have no dropout; evaluation mode only says that all segments are run.
    model.eval()
    batch = {name: reference[name].long() for name in ("inputs", "puzzle_identifiers", "labels")}
    errors = Errors()
    state = model.initial_state(len(batch["inputs"]))
    with torch.no_grad():
        for n in range(int(reference.config.get("segments", 1))):
            with numerics.precision():
                state, logits, q_halt, q_continue = model(state, batch)
            published = {group: reference[f"segment{n}/{group}"] for group in ("z_H", "z_L")}
            for group, ours in zip(published, state, strict=True):
                errors.compare(group, ours, published[group])
            if numerics.teacher_forced:
                state = type(state)(*(tensor.to(numerics.dtype) for tensor in published.values()))
            errors.compare("logits", logits, reference[f"segment{n}/logits"])
            errors.compare("q_halt", q_halt, reference[f"segment{n}/q_halt_logits"])
            errors.compare("q_continue", q_continue, reference[f"segment{n}/q_continue_logits"])
    _compare_gradients(model, batch, reference, errors, numerics)
    return errors


def _compare_gradients(
    model: PuzzleModel, batch: Mapping[str, Tensor], reference: Reference, errors: Errors, numerics: Numerics
) -> None:
    """Compare the first segment's loss, and its gradient by the parts that the published names begin with."""
    with numerics.precision():
        _, logits, q_halt, _ = model(model.initial_state(len(batch["inputs"])), batch)
    loss = puzzle_loss(logits, q_halt, batch["labels"])
    errors.compare("loss", loss.answers, reference["loss/stablemax"])
    errors.compare("loss", loss.q_halt, reference["loss/q_halt"])
    loss.total.backward()
    parameters = dict(model.named_parameters())
    gradients = reference.under("grad")
    for name in reference.under("weights"):
        ours = parameters.get(name_from_published(name, reference.config["kind"]))
        # The initial latents are no parameters; the puzzle embedding has no gradient in the files.
        if ours is None or name.endswith("puzzle_emb.weights"):
            continue
        if name not in gradients:
            raise ValueError(f"it has no tensor 'grad/{name}'; give a whole parity file")
        gradient = torch.zeros_like(ours) if ours.grad is None else ours.grad
        part = name.removeprefix("inner.").split(".")[0]
        errors.compare(f"grad/{part}", gradient, gradients[name])


def tolerances(path: Path, numerics: Numerics) -> dict[str, float]:
    """The tolerance of each group: 1e-4, or twice the reference's error; see the module's docstring."""
    if numerics.path == "plain":
        return {}
    reference = compare_file(path, numerics=REFERENCES[numerics.path])
    return {group: max(TOLERANCE, 2 * error) for group, error in reference.groups.items()}


def report(path: Path, errors: Errors, allowed: Mapping[str, float] | None = None) -> bool:
    """Print a file's errors and its verdict; return whether all are within the tolerance.

    Args:
        allowed: each group's tolerance; 1e-4 for those that it lacks.
    """
    limits = {group: (allowed or {}).get(group, TOLERANCE) for group in errors.groups}
    print(path)
    for group, error in errors.groups.items():
        print(f"  {group:<18} {error:.2e}" + (f"  of {limits[group]:.0e}" if allowed else ""))
    passed = all(error <= limits[group] for group, error in errors.groups.items())
    verdict = "agrees" if passed else "DIFFERS"
    limit = f"tolerance {TOLERANCE:.0e}" + (" or as listed" if allowed else "")
    print(f"  {verdict}: largest absolute error {errors.largest:.2e}, {limit}")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every file named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hrm_agent.parity", description=__doc__.splitlines()[0])
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="parity file (safetensors)")
    parser.add_argument(
        "--path", choices=PATHS, default="plain", help="what computes the cores; a fast path has a tolerance of its own"
    )
    given = parser.parse_args(arguments)
    numerics = Numerics(given.path, teacher_forced=True)
    passed = True
    for path in given.files:
        try:
            check_kernel(given.path)
            errors = compare_file(path, numerics=numerics)
            allowed = tolerances(path, numerics)
        # IndexError: a token that the vocabulary lacks; the others: settings or shapes that no model has.
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            print(f"{printable(str(path))}: {printable(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        passed = report(path, errors, allowed) and passed
        if given.path == "plain":
            ours, double = (compare_file(path, numerics=each).largest for each in FREE)
            print(f"  from our own latents: {ours:.2e}, in double precision {double:.2e}")
    return 0 if passed else 1
