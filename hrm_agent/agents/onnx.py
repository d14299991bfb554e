"""One decision of an agent as an ONNX graph (`python -m hrm_agent.export`).

The graph is a pure function; the carried state is an input and an output.

    inputs   obs (one input `obs.KEY` for each entry of a dictionary), the dtype of the observation space, `[B, ...]`
             episode_start  bool `[B]`, true where the observation begins an episode; the state is then ignored
             state_0, ...   returned by the last call; zeros before the first (none where nothing is carried)
    outputs  action         `[B, ...]`, the most probable action, in the environment's format
             logits         float `[B, P]`, parameters of the actions' distribution, or Q-values
                            (`hrm_agent.policies.distributions`)
             value          float `[B]`; absent where the logits are Q-values
             state_0_next, ...

B is dynamic. The metadata of the model hold the spaces, the policy's settings and `Agent.info` as JSON, under
`hrm_agent.*`. Needs the extra `onnx`.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hrm_agent.agents.agent import Agent, AgentOverrides
from hrm_agent.agents.registry import TRAINED, load_agent
from hrm_agent.environments.spaces import space_to_dict
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.policies.distributions import Categorical, Distribution, Gaussian, MultiCategorical
from hrm_agent.policies.encoders import find_grid
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import reference_kernels

TOLERANCE = 1e-4
"""Largest difference from torch that counts as rounding, relative to `1 + |number|`."""
CHECKED_BATCHES = (1, 3)
CHECKED_STEPS = 4
TRACED_BATCH = 2  # torch.export treats a size of 1 as a constant


class ExportError(ValueError):
    """The agent cannot be exported, or the graph does not agree with it; one line."""


class _DecisionGraph(nn.Module):
    """`Policy.step` as a function of tensors: observations, episode_start, states -> action, logits, value, states."""

    def __init__(self, policy: Policy, distribution: Distribution, keys: list[str] | None) -> None:
        super().__init__()
        self.policy, self.distribution, self.keys = policy, distribution, keys
        self.with_value = policy.value_head is not None
        self.to_env = _ToEnv(distribution)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        entries = 1 if self.keys is None else len(self.keys)
        obs = tensors[0] if self.keys is None else dict(zip(self.keys, tensors, strict=False))
        decision = self.policy.step(obs, tensors[entries + 1 :], tensors[entries])
        value = (decision.value,) if self.with_value else ()
        action = self.to_env(self.distribution.best(decision.logits))
        return (action, decision.logits, *value, *decision.state)


class _ToEnv(nn.Module):
    """`Distribution.to_env` on tensors; `_compare` checks that the two agree."""

    first: Tensor
    middle: Tensor
    span: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution
        if isinstance(distribution, Gaussian):
            self.register_buffer("middle", torch.from_numpy(distribution.middle))
            self.register_buffer("span", torch.from_numpy(distribution.half))
            self.register_buffer("low", torch.from_numpy(distribution.low))
            self.register_buffer("high", torch.from_numpy(distribution.high))
        elif isinstance(distribution, Categorical | MultiCategorical):
            self.register_buffer("first", torch.as_tensor(distribution.first))

    def forward(self, actions: Tensor) -> Tensor:
        if not isinstance(self.distribution, Gaussian):
            return actions + self.first
        values = (self.middle + self.span * actions.double()).maximum(self.low).minimum(self.high)
        dtype = getattr(torch, str(self.distribution.space_dtype))
        return values.reshape(-1, *self.distribution.space_shape).to(dtype)


class _PlainEmbeddings(TorchFunctionMode):
    """`embedding_bag` over rows of equal length, as a look-up and a sum; ONNX has only a loop for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding_bag and (kwargs or {}).get("mode") == "sum" and args[0].dim() == 2:
            return nn.functional.embedding(args[0], args[1]).sum(-2)
        return func(*args, **(kwargs or {}))


def export_onnx(agent: Agent, path: str | Path) -> dict[str, Any]:
    """Write one decision of `agent` as an ONNX file, after checking that onnxruntime agrees with torch.

    Args:
        agent: with a fixed number of segments (`stop=fixed`).
        path: of the file, written atomically.

    Returns:
        `inputs` and `outputs` (names), `opset`, `bytes`, and `largest_difference` from torch, relative to
        `1 + |number|`, over a few random steps with resets.

    Raises:
        ExportError: the extra is missing, `stop` is not `fixed`, torch cannot trace the agent, or onnxruntime does not
            agree with torch.
    """
    _check(agent)
    was_on = agent.policy.device
    policy = agent.policy.cpu()
    try:
        inputs, outputs, graph = _names(agent)
        model = _trace(
            graph, _random_inputs(agent, TRACED_BATCH, 0, policy.initial_state(TRACED_BATCH)), inputs, outputs
        )
        _annotate(model, agent)
        data: bytes = model.SerializeToString()
        difference = _compare(agent, graph, data, inputs, outputs)
    finally:
        policy.to(was_on)
    write_output(path, data)
    opset = next(o.version for o in model.opset_import if o.domain == "")
    return {
        "inputs": inputs, "outputs": outputs, "opset": opset, "bytes": len(data), "largest_difference": difference
    }  # fmt: skip


def _check(agent: Agent) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX needs an extra: pip install 'hrm-agent[onnx]' ({error})") from None
    config = agent.policy.config
    if config.stop != "fixed":
        raise ExportError(
            f"stop={config.stop}: rows that stop thinking at different times are no fixed graph; export with stop=fixed"
        )
    if config.first_segments is not None:
        raise ExportError(
            f"first_segments={config.first_segments}: rows that think for different times are no fixed graph; export "
            "without"
        )


def _names(agent: Agent) -> tuple[list[str], list[str], _DecisionGraph]:
    space = agent.observation_space
    keys = list(space.spaces) if isinstance(space, gym.spaces.Dict) else None
    graph = _DecisionGraph(agent.policy, agent.distribution, keys).eval()
    observations = ["obs"] if keys is None else [f"obs.{key}" for key in keys]
    states = [f"state_{i}" for i in range(len(agent.policy.initial_state(1)))]
    value = ["value"] if graph.with_value else []
    return (
        [*observations, "episode_start", *states],
        ["action", "logits", *value, *(f"{s}_next" for s in states)],
        graph,
    )


def _trace(graph: _DecisionGraph, example: list[Tensor], inputs: list[str], outputs: list[str]) -> Any:
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in example),)
    try:
        with torch.no_grad(), _PlainEmbeddings(), reference_kernels(graph), _quiet():
            program = torch.export.export(graph, tuple(example), dynamic_shapes=shapes, strict=False)
        with _quiet():
            exported = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
    except Exception as error:  # torch raises many types; in every case no file is written
        lines = str(error).strip().splitlines() or [""]
        raise ExportError(
            f"torch {torch.__version__} cannot export this agent ({type(error).__name__}: {lines[0]})"
        ) from error
    assert exported is not None
    model = exported.model_proto
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"  # torch calls it s56 or the like
    del model.graph.value_info[:]  # they still use torch's name
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log and warnings; errors are still raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _annotate(model: Any, agent: Agent) -> None:
    facts = {
        "observation_space": space_to_dict(agent.observation_space),
        "action_space": space_to_dict(agent.action_space),
        "policy": agent.policy.config.to_dict(),
        "info": agent.info,
    }
    for name, value in facts.items():
        model.metadata_props.add(key=f"hrm_agent.{name}", value=json.dumps(value))
    model.producer_name = "hrm_agent"
    model.doc_string = " ".join((__doc__ or "").split("\n\n", 1)[-1].split())


def _compare(agent: Agent, graph: _DecisionGraph, data: bytes, inputs: list[str], outputs: list[str]) -> float:
    """Largest relative difference over random steps, each from the same state on both sides.

    Steps are compared one by one because recursion amplifies rounding, so that two correct runs drift apart.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    taken = {port.name for port in session.get_inputs()}
    worst = 0.0
    for batch in CHECKED_BATCHES:
        state = agent.policy.initial_state(batch)
        for step in range(CHECKED_STEPS):
            tensors = _random_inputs(agent, batch, 1 + step, state)
            feed = {name: t.numpy() for name, t in zip(inputs, tensors, strict=True) if name in taken}
            found = session.run(outputs, feed)
            with torch.no_grad():
                expected = graph(*tensors)
            distribution, (action, logits, *_) = agent.distribution, found
            if not np.array_equal(action, distribution.to_env(distribution.best(torch.from_numpy(logits)))):
                raise ExportError(f"onnxruntime {onnxruntime.__version__} takes other actions than its logits say")
            for name, mine, theirs in list(zip(outputs, expected, found, strict=True))[1:]:
                off = float((np.abs(mine.numpy() - theirs) / (1 + np.abs(mine.numpy()))).max())
                if not off <= TOLERANCE:
                    raise ExportError(
                        f"onnxruntime {onnxruntime.__version__} gives other numbers than torch: {name} is off by "
                        f"{off:.1e} at step {step} with {batch} rows; expected at most {TOLERANCE:g}"
                    )
                worst = max(worst, off)
            state = expected[len(expected) - len(state) :]
    return worst


def _random_inputs(agent: Agent, batch: int, seed: int, state: tuple[Tensor, ...]) -> list[Tensor]:
    """Observations of the space; about a third begin an episode, at the first step all."""
    random = np.random.default_rng(seed)
    obs = _random_observations(agent, batch, random)
    start = torch.from_numpy(random.random(batch) < (1 if seed <= 1 else 1 / 3))
    return [*(torch.from_numpy(o) for o in obs.values()), start, *state]


def _random_observations(agent: Agent, batch: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    space, found = agent.observation_space, find_grid(agent.policy.encoder)
    space.seed(int(random.integers(2**31)))
    samples = [space.sample() for _ in range(batch)]
    if isinstance(space, gym.spaces.Dict):
        stacked = {key: np.stack([s[key] for s in samples]).astype(sub.dtype) for key, sub in space.spaces.items()}
    else:
        stacked = {"": np.stack(samples).astype(space.dtype)}
    if agent.policy.config.readout == "agent" and found is not None:
        whole: Any = stacked if isinstance(space, gym.spaces.Dict) else stacked[""]
        seen: Any = agent.policy.seen(whole)
        grids = seen if found[1] is None else seen[found[1]]
        _place_agents(grids, agent.policy.config.agent_id, found[0].crop, random)
    return stacked


def _place_agents(grids: np.ndarray, agent_id: int, crop: int, random: np.random.Generator) -> None:
    """Exactly one cell with the agent's id in every grid `[B, H, W(, C)]`, inside the encoder's crop."""
    cells = grids if grids.ndim == 3 else grids[..., 0]
    cells[cells == agent_id] = 0
    for row in cells:
        height, width = row.shape
        row[random.integers(crop, height - crop), random.integers(crop, width - crop)] = agent_id


def to_feed(agent: Agent, observation: Any, episode_start: Any, state: tuple[np.ndarray, ...] | None) -> dict[str, Any]:
    """The `feed` of onnxruntime's `session.run(None, feed)` for a batch of observations.

    Args:
        agent: the exported agent; only its spaces and shapes are used.
        observation: a batch, in the environment's format.
        episode_start: bool `[B]`.
        state: the last call's `state_*_next`; None before the first.
    """
    parts: Mapping[str, Any] = observation if isinstance(observation, Mapping) else {"": observation}
    arrays = {f"obs.{key}" if key else "obs": np.asarray(value) for key, value in parts.items()}
    size = len(next(iter(arrays.values())))
    if state is None:
        state = tuple(np.zeros(s.shape, np.float32) for s in agent.policy.initial_state(size))
    start = np.broadcast_to(np.asarray(episode_start, bool), (size,))
    return {**arrays, "episode_start": start, **{f"state_{i}": s for i, s in enumerate(state)}}


def export(
    out: str = "agent.onnx",
    run: str | None = None,
    agent: str | None = None,
    overrides: AgentOverrides = TRAINED,
    best: bool = True,
) -> dict[str, Any]:
    """`export_onnx` of the agent in the folder `run`, or of the one registered as `agent`, into the file `out`.

    Args:
        run: folder of a training run or of an agent; or give `agent`.
        agent: id of a registered agent in place of `run`; `python -m hrm_agent.agents` lists them.
        out: a `.onnx` file, written whole or not at all.
        overrides: of the trained settings; `stop=fixed` for one that stops thinking by itself.
        best: of a run's agents, the best on validation levels rather than the last.

    Raises:
        ValueError: there is no agent, `out` is not an .onnx file, or the agent cannot be exported; nothing is written.
    """
    path = check_output(out)
    if path.suffix != ".onnx":
        raise ValueError(f"out={out}: expected a name that ends in .onnx")
    return export_onnx(load_agent(run, agent, best, overrides), path)
