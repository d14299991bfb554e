"""What a GPU does with the paper's network: decisions a second as a share of the machine's own limit, and a profile.

    timeout 600 python experiments/speed/gpu.py                           # again, to go on where it was stopped
    python experiments/speed/gpu.py --device cpu --smoke --out /tmp/gpu   # that the script runs, in seconds

Rows are written one by one into `experiments/speed/gpu.json`, and those that are there are not measured again. The
limit is measured first, in every call: bfloat16 matrix products and a copy in memory. Every row also has the error of
its Q-values on fresh random observations and states against the float32 policy, beside what bfloat16 alone costs.
The profile (`gpu_profile.json`, `gpu_profile.txt`) is of collection and update of PPO in the paper's maze.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrm_agent.cores import Core, State
from hrm_agent.environments.make import make_vector_env
from hrm_agent.experience.collector import Collector
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.parallel.cuda import CudaConfig
from hrm_agent.parallel.graphs import graph_wrapper
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import use
from hrm_agent.recurrence.cuda import AGREEMENT, CUDACore, all_in_bf16, use_cuda
from hrm_agent.tensors.trees import to_tensors
from hrm_agent.training.learners import build_env, build_learner
from hrm_agent.training.trainer import wrap_for

HERE = Path(__file__).resolve().parent
Decide = Callable[[], Tensor]
PATHS = ("eager float32", "eager", "compiled", "graph", "compiled graph", "triton", "triton graph")
SWITCHES: dict[str, dict[str, bool]] = {
    "all": {},
    "no graphs": {"graphs": False},
    "no bf16": {"bf16": False},
    "none": {"graphs": False, "bf16": False},
    "all and triton": {"triton": True},
}
TINY = ["core.hidden_size=32", "core.H_layers=1", "core.L_layers=1", "core.inner_size=32", "segments=2"]
SMALL = ["core.hidden_size=32", "core.inner_size=32", "algo.num_envs=8", "algo.rollout_steps=2", "algo.window=2"]
SMALL += ["algo.minibatch_windows=8", "algo.epochs=1", "segments=1"]
PARTS = ("decisions", "training", "profile")


class Records:
    """A JSON file of rows that grows while they are measured."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": []}
        if self.content.get("machine", machine) != machine:
            raise SystemExit(f"{path}: measured on another machine ({self.content['machine']}); move it away, or --out")
        # What failed is tried again.
        self.content["rows"] = [row for row in self.content["rows"] if "failed" not in row]
        self.content["command"] = "python experiments/speed/gpu.py"
        self.content["machine"] = machine

    def has(self, **key: Any) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.content["rows"])

    def add(self, **row: Any) -> None:
        self.content["rows"].append(row)
        print(json.dumps(row), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        part.replace(self.path)  # a run that is stopped leaves whole rows


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device, budget: float) -> float:
    """Of one call: the mean over as many as fit into `budget` seconds, after three that do not count."""
    for _ in range(3):
        function()
    wait(device)
    began, calls, chunk = time.perf_counter(), 0, 1
    while (spent := time.perf_counter() - began) < budget or not calls:
        for _ in range(chunk):
            function()
        wait(device)
        calls += chunk
        chunk = min(2 * chunk, 64) if spent < budget / 8 else chunk
    return (time.perf_counter() - began) / calls


def measure_limits(device: torch.device, smoke: bool, budget: float) -> dict[str, float]:
    """The machine's bfloat16 matrix rate (FLOP/s) and memory bandwidth (bytes/s, read and written)."""
    best = 0.0
    for size in (256,) if smoke else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        best = max(best, 2 * size**3 / seconds_of(lambda a=a, b=b: a @ b, device, budget))  # type: ignore[misc]
    source = torch.empty(2**22 if smoke else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / seconds_of(lambda: target.copy_(source), device, budget)
    return {"matrix_flops": best, "memory_bytes": moved}


def flops_of(policy: Policy) -> float:
    """Operations of one decision: the matrix products and attention of its core; two a multiply-add."""
    core: Any = policy.core
    length, size = core.length, core.hidden_size

    def block(layer: Any) -> float:
        weights = sum(p.numel() for p in layer.parameters())
        return 2.0 * length * weights + 4.0 * length**2 * size

    low, high = (sum(map(block, net.layers)) for net in (core.L_net, core.H_net))
    return policy.segments * core.H_cycles * (core.L_cycles * low + high)


class Paper:
    """The paper's policy, and random observations and states for it."""

    def __init__(self, device: torch.device, smoke: bool) -> None:
        changes = TINY if smoke else []
        trainer, config, _ = settings(
            resolve(compose_config(["+experiment=hrm_agent_maze", "device=cpu", *changes], "train"))
        )
        torch.manual_seed(0)
        self.trainer = trainer
        env = make_vector_env(trainer.env, 1, trainer.env_options)
        self.policy = Policy(config, env.single_observation_space, env.single_action_space).to(device).eval()
        self.device = device
        self.flops = flops_of(self.policy)

    def inputs(self, batch: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        env = make_vector_env(self.trainer.env, batch, self.trainer.env_options)
        obs = to_tensors(env.reset(seed=int(time.time()))[0], self.device)
        assert isinstance(obs, Tensor)
        state = tuple(s + torch.randn_like(s) for s in self.policy.initial_state(batch))
        return obs, state, torch.rand(batch, device=self.device) < 0.1


def decide_by(path: str, policy: Policy, inputs: tuple[Any, Any, Any]) -> Decide:
    """A decision about fixed inputs by one of `PATHS`; `policy` is changed.

    Raises:
        RuntimeError: the path does not work here.
    """
    said: list[str] = []
    if path.startswith("compiled"):
        use(policy, "compiled")
    forward = use_cuda(policy, path != "eager float32", path.startswith("triton"), said.append)
    if said:
        raise RuntimeError(said[0])

    @torch.no_grad()
    def step(*given: Any) -> Tensor:
        return policy.step(*given).logits

    if path == "triton" or path == "triton graph":
        forward.weights_changed()
    decide = graph_wrapper(policy.device, said.append)("it", step) if path.endswith("graph") else step
    decide(*inputs)
    if said:
        raise RuntimeError(said[0])
    return lambda: decide(*inputs)


def decisions(records: Records, device: torch.device, limits: dict[str, float], options: argparse.Namespace) -> None:
    paper = Paper(device, options.smoke)
    at_most = limits["matrix_flops"] / paper.flops
    for batch in options.batches:
        inputs = paper.inputs(batch)
        with torch.no_grad():
            exact = copy.deepcopy(paper.policy).step(*inputs).logits
            rough = copy.deepcopy(paper.policy)
            rough.backend = CUDACore(bf16=True)
            products = relative(rough.step(*inputs).logits, exact)
            rough.backend = CUDACore(False, kernel=in_bf16(paper.policy.core))
            everything = relative(rough.step(*inputs).logits, exact)
        for path in options.paths:
            if records.has(what="decisions", path=path, batch=batch):
                continue
            row: dict[str, Any] = {"what": "decisions", "path": path, "batch": batch}
            cost = everything if path.startswith("triton") else products  # the kernel's latents are bfloat16 too
            try:
                decide = decide_by(path, copy.deepcopy(paper.policy), inputs)
                error = relative(decide(), exact)
                per_second = batch / seconds_of(decide, device, options.seconds)
            except Exception as failure:  # a row that fails says so, and the next is measured
                records.add(**row, failed=(str(failure).strip().splitlines() or [type(failure).__name__])[0][:300])
                continue
            records.add(
                **row,
                per_second=per_second,
                limit_per_second=at_most,
                share_of_limit=per_second / at_most,
                flops_a_decision=paper.flops,
                relative_error=error,
                relative_error_of_bf16=cost,
                right=error <= (1e-3 if path == "eager float32" else AGREEMENT * cost),
                **limits,
            )


def in_bf16(core: Core) -> Callable[[Tensor, State, int], tuple[Tensor, State]]:
    """Segments of the core all in bfloat16, as a kernel computes them."""
    once = all_in_bf16(core)

    def run(x: Tensor, state: State, segments: int) -> tuple[Tensor, State]:
        output = x
        for _ in range(segments):
            output, state = once(x, state)
        return output, state

    return run


def relative(given: Tensor, exact: Tensor) -> float:
    return float((given - exact).norm() / exact.norm())


class Training:
    """Collection and update of PPO in the paper's maze, as `device=cuda` does them."""

    def __init__(
        self, device: torch.device, switches: dict[str, bool], options: argparse.Namespace, kernel: str = "plain"
    ) -> None:
        sizes = SMALL if options.smoke else options.training
        values = resolve(compose_config(["env=PaperMaze-v0", "device=cpu", "shards=1", *sizes], "train"))
        trainer, config, algo = settings(values)
        self.said: list[str] = []
        threads, cuda = Threads(1), replace(CudaConfig(), **switches)
        torch.manual_seed(0)
        env = build_env(algo, trainer.env, algo.num_envs, trainer.env_options)
        policy = Policy(config, env.single_observation_space, env.single_action_space).to(device)
        use(policy, kernel)
        self.forward = use_cuda(policy, cuda.bf16, cuda.triton, self.said.append)
        wrap = wrap_for(policy, algo, threads, self.said.append) if cuda.graphs else None
        self.collector = Collector(env, policy, 0, threads, wrap=wrap)
        self.learner = build_learner(policy, algo, env.single_observation_space, self.collector, threads, 0)

    def collect(self) -> None:
        self.forward.weights_changed()
        self.learner.collect(self.collector, 0.0)

    def update(self) -> None:
        self.learner.update(0.0)


def train(records: Records, device: torch.device, options: argparse.Namespace) -> None:
    """What each switch gives, in frames a second of collection, of the update, and of both."""
    rows = [(name, switches, "plain") for name, switches in SWITCHES.items()] + [("all", {}, "compiled")]
    for name, switches, kernel in [rows[0], rows[3]] if options.smoke else rows:
        key = {"what": "training", "switches": name, "kernel": kernel}
        if records.has(**key):
            continue
        try:
            training = Training(device, switches, options, kernel)
            collect = seconds_of(training.collect, device, options.seconds)
            update = seconds_of(training.update, device, options.seconds)
        except Exception as failure:
            reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:300]
            records.add(**key, failed=reason)
            continue
        rollout: Any = training.learner.rollout  # type: ignore[attr-defined]
        frames = rollout.steps * rollout.num_envs
        records.add(
            **key,
            environments=rollout.num_envs,
            collected_per_second=frames / collect,
            updated_per_second=frames / update,
            frames_per_second=frames / (collect + update),
            said=training.said,
        )


def profile(out: Path, device: torch.device, options: argparse.Namespace) -> None:
    """Where the time of a step and an update goes: a table, and the same as JSON."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    parts, texts = {}, []
    training = Training(device, {}, options)
    for name, function in (("collect", training.collect), ("update", training.update)):
        for _ in range(2):
            function()
        wait(device)
        with torch.profiler.profile(activities=activities) as recorded:
            began = time.perf_counter()
            function()
            wait(device)
            wall = time.perf_counter() - began
        averages = recorded.key_averages()
        events = sorted(averages, key=lambda e: -getattr(e, key))
        parts[name] = {
            "seconds": wall,
            "seconds_in_operations": sum(getattr(e, key) for e in events) / 1e6,
            "operations": [
                {"name": e.key[:120], "calls": e.count, "microseconds": getattr(e, key)} for e in events[:30]
            ],
        }
        texts.append(f"{name}\n" + averages.table(sort_by=key, row_limit=30, max_name_column_width=80))
    out.with_name(out.stem + "_profile.txt").write_text("\n".join(texts))
    found = {"command": "python experiments/speed/gpu.py", "sorted_by": key, "said": training.said, "parts": parts}
    out.with_name(out.stem + "_profile.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS, metavar="PATH")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument(
        "--training",
        nargs="*",
        default=["algo.num_envs=1024", "algo.minibatch_windows=512"],
        help="settings of the run that is timed and profiled",
    )
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA device; --device cpu --smoke shows that the script runs")
    if options.smoke:
        options.seconds, options.batches = 0.01, [2, 3]
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    machine = {"device": name, "torch": torch.__version__, "smoke": options.smoke}
    records = Records(options.out, machine)
    limits = measure_limits(device, options.smoke, options.seconds)
    print(json.dumps({"limits": limits}), flush=True)
    if "decisions" in options.parts:
        decisions(records, device, limits, options)
    if "training" in options.parts:
        train(records, device, options)
    if "profile" in options.parts and not options.out.with_name(options.out.stem + "_profile.json").is_file():
        profile(options.out, device, options)


if __name__ == "__main__":
    main()
