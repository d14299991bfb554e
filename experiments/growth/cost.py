"""What a decision and a training frame cost as the maze grows: milliseconds, multiply-adds, memory.

    python -m experiments.growth.cost

Processor time of one thread, which other work on the machine disturbs less than the clock. The mixings take turns at
every size, and the figures are medians over the rounds; how often a size is measured falls with the time that it takes.
A line ends where one call takes longer than `CALL_LIMIT` seconds or the weights with their gradients more than
`WEIGHT_LIMIT` bytes; `cost.json` says which of the two ended it.
"""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from experiments.engine import turns
from experiments.engine.machine import command
from hrm_agent.cores.blocks import PositionMLPMixing, swiglu_width
from hrm_agent.cores.sweep import GATE_GROUPS, SCAN_PRODUCTS
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.policies.policy import Policy
from hrm_envs import Cell

HERE = Path(__file__).resolve().parent
SIDES = (9, 13, 17, 25, 33, 49, 65, 101)
"""Grid positions along a side; a token is a maze cell with its east and south edges, `(side - 1) / 2` a side."""

VARIANTS: dict[str, list[str]] = {
    "attention": ["core.mixing=attention", "core.positions=rope2d"],
    "mlp": ["core.mixing=mlp"],
    "mlp_published": ["core.mixing=mlp"],  # with the published width over positions, see `build`
    "conv": ["core.mixing=conv"],
    "sweep": ["core.mixing=sweep"],
}
"""Overrides of what shipped until November 2026 (width 64, one block used twice a decision, SwiGLUs of 128)."""

ROWS, STEPS = 2, 4
"""Of the window whose forward and backward pass is a training call."""

CALL_LIMIT = 5.0
WEIGHT_LIMIT = 2**30
ROUND_SECONDS = 0.5
"""Time that the rounds of one mixing at one size shall take together; at least `MIN_ROUNDS`, at most `MAX_ROUNDS`."""

MIN_ROUNDS, MAX_ROUNDS = 3, 41
ACTIONS = 4
WIDTH, INNER, LAYERS, PASSES, EXPANSION = 64, 128, 1, 2, 4.0
"""Of the shipped core, for the arithmetic; tests hold that they are what is built."""


def main() -> None:
    torch.set_num_threads(1)
    ended: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    for side in SIDES:
        measured = measure_side(side, ended)
        records += measured
        write(records, ended)
        print(f"{side}x{side}: " + ", ".join(f"{r['mixing']} {r['decision_ms']:.3g} ms" for r in measured), flush=True)


def write(records: list[dict[str, Any]], ended: dict[str, str]) -> None:
    """All that has been measured, one record a line."""
    result = {
        "command": command(),
        "machine": f"processor time of one core, shared {platform.machine()} server, no GPU; torch {torch.__version__}",
        "batch": {"decision": 1, "training_rows": ROWS, "training_steps": STEPS},
        "limits": {"seconds_of_a_call": CALL_LIMIT, "bytes_of_weights_and_gradients": WEIGHT_LIMIT},
        "ended": ended,
    }
    lines = ",\n".join(json.dumps(record) for record in records)
    text = json.dumps({**result, "records": []}, indent=1)
    (HERE / "cost.json").write_text(text.replace('"records": []', f'"records": [\n{lines}\n]') + "\n")


def measure_side(side: int, ended: dict[str, str]) -> list[dict[str, Any]]:
    """Records of one size, one for each mixing whose line goes on; why others end is added to `ended`."""
    calls, policies, rounds = {}, {}, {}
    for name in [name for name in VARIANTS if name not in ended]:
        needed = 8 * LAYERS * weights_of_mixing(name, tokens_of(side))
        if needed > WEIGHT_LIMIT:
            ended[name] = f"weights: {needed / 2**30:.1f} GiB with their gradients at {side}x{side}"
            continue
        policies[name] = build(name, side)
        calls[name] = [decision(policies[name], side), training(policies[name], side)]
        first = [seconds_of(call) for call in calls[name]]  # with what is allocated and compiled once
        took = [seconds_of(call) for call in calls[name]] if max(first) < 4 * CALL_LIMIT else first
        rounds[name] = int(min(max(ROUND_SECONDS / sum(took), MIN_ROUNDS), MAX_ROUNDS))
        if max(took) > CALL_LIMIT:
            ended[name] = f"time: {max(took):.0f} s a call at {side}x{side}"
            del calls[name]
    times: dict[str, list[list[float]]] = {name: [[], []] for name in calls}
    for turn in range(max((rounds[name] for name in calls), default=0)):
        for name in [name for name in calls if turn < rounds[name]]:
            for kind, call in enumerate(calls[name]):
                times[name][kind].append(seconds_of(call))
    return [
        {
            "mixing": name,
            "side": side,
            "tokens": tokens_of(side),
            "decision_ms": round(1000 * statistics.median(times[name][0]), 4),
            "training_frame_ms": round(1000 * statistics.median(times[name][1]) / (ROWS * STEPS), 4),
            "macs_per_decision": macs_of_decision(name, tokens_of(side)),
            "kept_bytes_per_training_frame": kept_bytes(policies[name], side) // (ROWS * STEPS),
            "parameters": sum(p.numel() for p in policies[name].parameters()),
            "rounds": rounds[name],
        }
        for name in calls
    ]


def tokens_of(side: int) -> int:
    return ((side - 1) // 2) ** 2


def build(name: str, side: int) -> Policy:
    """That policy with another mixing."""
    torch.manual_seed(0)
    _, config, _ = settings(resolve(compose_config(["+earlier=november_2026", *VARIANTS[name]], "train")))
    policy = Policy(config, gym.spaces.Box(0, len(Cell) - 1, (side, side), np.uint8), gym.spaces.Discrete(ACTIONS))
    if name == "mlp_published":
        for layer in policy.core.net.layers:
            layer.mixer = PositionMLPMixing(policy.core.length, swiglu_width(policy.core.length, EXPANSION, None))
    return policy


def observations(side: int, *lead: int) -> Tensor:
    """Grids of empty cells and walls with one agent each, uint8."""
    random = np.random.default_rng(0)
    grid = random.integers(0, 2, (*lead, side, side), dtype=np.uint8)
    grid[..., 1, 1] = Cell.AGENT
    return torch.from_numpy(grid)


def decision(policy: Policy, side: int) -> Any:
    obs, state, start = observations(side, 1), policy.initial_state(1), torch.zeros(1, dtype=torch.bool)

    def decide() -> None:
        with torch.no_grad():
            policy.step(obs, state, start)

    return decide


def training(policy: Policy, side: int) -> Any:
    obs, state = observations(side, STEPS, ROWS), policy.initial_state(ROWS)
    start = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    parameters = [p for p in policy.parameters() if p.requires_grad]

    def train() -> None:
        said = policy.unroll(obs, state, start)
        loss = said.logits.square().sum() + said.value.square().sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)

    return train


def seconds_of(call: Any) -> float:
    return turns.turn(call, 0.0, "cpu").cpu


def kept_bytes(policy: Policy, side: int) -> int:
    """Bytes of the tensors that the forward pass of a training call keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    obs, state = observations(side, STEPS, ROWS), policy.initial_state(ROWS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        said = policy.unroll(obs, state, torch.zeros(STEPS, ROWS, dtype=torch.bool))
        del said
    return sum(storages.values())


def weights_of_mixing(name: str, tokens: int) -> int:
    """Weights of one block's token mixing that grow with the maze: those over positions."""
    return {"mlp": 3 * tokens * INNER, "mlp_published": 3 * tokens * swiglu_width(tokens, EXPANSION, None)}.get(name, 0)


def macs_of_decision(name: str, tokens: int) -> int:
    """Multiply-adds of one decision by arithmetic; look-ups, norms and what is done once per number are left out."""
    mixing = {
        "attention": 4 * WIDTH**2 + 2 * tokens * WIDTH,
        "mlp": 3 * INNER * WIDTH,
        "mlp_published": 3 * swiglu_width(tokens, EXPANSION, None) * WIDTH,
        "conv": 9 * WIDTH,
        "sweep": 8 * GATE_GROUPS * WIDTH + SCAN_PRODUCTS * WIDTH,
    }[name]
    return PASSES * LAYERS * tokens * (mixing + 3 * WIDTH * INNER) + (ACTIONS + 1) * WIDTH


if __name__ == "__main__":
    main()
