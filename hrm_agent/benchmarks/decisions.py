"""Suite `decision`: decisions of a policy for a batch of environments, made by the collector."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from hrm_agent.benchmarks import inputs
from hrm_agent.benchmarks.cases import CHECKED_ROWS, EXACT, Case, Competitor, Options, Outputs
from hrm_agent.benchmarks.networks import RunParts, build_run
from hrm_agent.benchmarks.paths import put_on
from hrm_agent.evaluation.cost import count_operations
from hrm_agent.experience.collector import Collector
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import PolicyState


def decision(options: Options) -> Iterator[Case]:
    """Decisions of the default run's policy for all its environments, and of the paper's for 64 of its 256."""
    for size, rows in (("default", 128), ("paper", 64)):
        yield decision_case(size, rows // 8 if options.quick else rows, options)


def decision_case(size: str, rows: int, options: Options) -> Case:
    """Decisions of a run's policy for `rows` environments."""
    fitting = ["algo.minibatch_windows=1"] if size == "default" else []
    parts = build_run(size, [f"algo.num_envs={rows}", *fitting])
    name = f"{size} policy, batch {rows}"
    operations = decision_operations(parts) * rows

    def make(path: str) -> Competitor:
        return policy_decisions(parts, rows, path, options.cores)

    return Case("decision", name, make, options.paths, operations, rows, "decisions", cores=options.cores)


def decision_operations(parts: RunParts) -> int:
    """Operations of one decision of a run's policy."""
    obs, start = inputs.observations(parts, 1, 1, 0)[0], torch.ones(1, dtype=torch.bool)
    with torch.no_grad():
        return count_operations(lambda: parts.policy.step(obs, parts.policy.initial_state(1), start))


def policy_decisions(parts: RunParts, rows: int, path: str, cores: int) -> Competitor:
    """A run's policy computed by a path, its batch split over threads by the collector."""
    policy = copy.deepcopy(parts.policy)
    put_on(policy, path)
    collector = Collector(parts.env, policy, 0, Threads(cores))

    def draw(count: int, seed: int) -> tuple[Tensor, PolicyState, Tensor]:
        kept = inputs.state(parts, count, seed, inputs.dtype_of(policy))
        return inputs.observations(parts, 1, count, seed)[0], kept, inputs.starts(count, seed=seed)

    def decide(segments: int, prefix: str, seed: int) -> Outputs:
        policy.segments, before = segments, policy.segments
        try:
            decided = collector._decide(*draw(CHECKED_ROWS, seed))
        finally:
            policy.segments = before
        return {f"{prefix}logits": decided.logits, **{f"{prefix}{i}": s for i, s in enumerate(decided.state)}}

    def outputs(seed: int) -> Outputs:
        # With untrained weights two nearby states diverge within a few segments.
        return {**decide(1, "first segment/", seed), **decide(policy.segments, EXACT, seed)}

    given = draw(rows, 0)
    return Competitor(lambda: collector._decide(*given), outputs)
