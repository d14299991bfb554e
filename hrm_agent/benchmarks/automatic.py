"""Suite `auto`: training minibatches of different policies on every path, and what `kernel=auto` takes for each."""

from __future__ import annotations

from collections.abc import Iterator

from hrm_agent.benchmarks.cases import Case, Competitor, Options, Outputs
from hrm_agent.benchmarks.networks import RunParts, build_run
from hrm_agent.benchmarks.paths import PLAIN
from hrm_agent.benchmarks.training import policy_on
from hrm_agent.evaluation.cost import count_operations
from hrm_agent.parallel.threads import Threads
from hrm_agent.recurrence import candidates
from hrm_agent.recurrence.kernel_timing import Size
from hrm_agent.tensors.trees import to_tensors
from hrm_agent.training.kernel_work import Passes, PolicyWork, measure_policy, passes_of

POLICIES: dict[str, list[str]] = {
    "default (HRM, conv, gate)": [],
    "carry=full": ["carry=full"],
    "carry=reset": ["carry=reset"],
    "TRM, conv": ["core=trm"],
    "attention": ["core.mixing=attention", "core.positions=rope"],
    "mlp": ["core.mixing=mlp"],
    "CartPole-v1": ["env=CartPole-v1"],
    "CartPole-v1, mlp": ["env=CartPole-v1", "core.mixing=mlp"],
}
"""Overrides of `python -m hrm_agent.train`, by the name of the case."""


def auto(options: Options) -> Iterator[Case]:
    """Forward and backward of a PPO minibatch, without the optimizer."""
    for name, overrides in POLICIES.items():
        yield auto_case(name, overrides, options)


def auto_case(name: str, overrides: list[str], options: Options) -> Case:
    """A run's minibatch, its batch split over threads as in training."""
    small = ["algo.num_envs=32", "algo.minibatch_windows=8"] if options.quick else []
    parts = build_run("default", [*small, *overrides])
    threads = Threads(options.cores)
    obs = to_tensors(parts.env.reset(seed=0)[0])
    training = next(p for p in passes_of(parts.algo) if p.gradient)
    whole = Size(parts.policy.segments, training.steps, training.rows)
    work = PolicyWork(obs, threads)

    def make(path: str) -> Competitor:
        policy = policy_on(parts, path)

        def outputs(seed: int) -> Outputs:
            judged = policy_on(parts, path)
            precision = "bfloat16" if path.endswith("bf16") else "float32"
            return PolicyWork(obs, threads, seed).outputs(judged, precision, training.steps, with_gradient=True)

        return Competitor(lambda: work.run(policy, training, whole), outputs)

    chosen = measure_policy(
        parts.policy, candidates(parts.policy, allow_bf16=True), passes_of(parts.algo), obs, threads
    )
    title = f"{name}, {training.rows} windows of {training.steps}"
    operations = _operations(parts, training, whole, work)
    return Case("auto", title, make, options.paths, operations, 1, "minibatches", cores=options.cores, auto=chosen)


def _operations(parts: RunParts, training: Passes, whole: Size, work: PolicyWork) -> int:
    alone = PolicyWork(work.obs, Threads(1))  # threads are not counted
    one = whole._replace(rows=1)
    return whole.rows * count_operations(lambda: alone.run(policy_on(parts, PLAIN), training, one))
