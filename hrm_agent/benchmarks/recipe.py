"""Suite `published`: the HRM-Agent paper's network at its full batch, against the recipe of its authors.

It takes minutes, so it is measured only when named. The recipe runs as published, the whole batch at once on
torch's own threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from hrm_agent.benchmarks import inputs
from hrm_agent.benchmarks.cases import CHECKED_ROWS, EXACT, Case, Competitor, Options, Outputs
from hrm_agent.benchmarks.decisions import decision_operations, policy_decisions
from hrm_agent.benchmarks.networks import RunParts, build_run
from hrm_agent.benchmarks.published import ACTIONS, PublishedAgent, PublishedTraining
from hrm_agent.benchmarks.training import (
    gradients,
    paper_segment,
    segment_inputs,
    segment_operations,
    segment_trainer,
)

PUBLISHED = {"published": torch.float32, "published_bf16": torch.bfloat16}
BATCH, QUICK_BATCH = 256, 8


def published(options: Options, rows: int | None = None) -> Iterator[Case]:
    """Decisions and training segments for 256 environments."""
    rows = rows or (QUICK_BATCH if options.quick else BATCH)
    paths = (*PUBLISHED, *options.paths)
    acting, learning = build_run("paper", [f"algo.num_envs={rows}"]), paper_segment(rows)

    def decision(path: str) -> Competitor:
        if path in PUBLISHED:
            return published_decisions(acting, rows, path, options.cores)
        return _renamed(policy_decisions(acting, rows, path, options.cores))

    def segment(path: str) -> Competitor:
        if path in PUBLISHED:
            return published_segments(learning, rows, path, options.cores)
        return _renamed(segment_trainer(learning, path, options.cores))

    operations = rows * decision_operations(acting)
    yield _case(f"paper policy, batch {rows}", decision, paths, operations, rows, "decisions", options)
    operations = rows * segment_operations(learning)
    yield _case(f"paper training segment, batch {rows}", segment, paths, operations, 1, "segments", options)


def _case(
    name: str,
    make: Callable[[str], Competitor],
    paths: tuple[str, ...],
    operations: int,
    count: int,
    unit: str,
    options: Options,
) -> Case:
    return Case("published", name, make, paths, operations, count, unit, cores=options.cores)


def published_decisions(parts: RunParts, rows: int, path: str, cores: int) -> Competitor:
    """Decisions of the published recipe, for observations as `hrm_agent.benchmarks.decisions` draws them."""
    agent = PublishedAgent(parts.policy, PUBLISHED[path])

    def decide(segments: int, prefix: str, seed: int) -> Outputs:
        agent.segments = segments
        ids = inputs.observations(parts, 1, CHECKED_ROWS, seed)[0].flatten(1).long()
        kept = inputs.state(parts, CHECKED_ROWS, seed, torch.float32)
        q, (z_H, z_L) = agent.decide(ids, (kept[0], kept[1]), inputs.starts(CHECKED_ROWS, seed=seed))
        agent.segments = parts.policy.segments
        return {f"{prefix}logits": q, f"{prefix}0": z_H, f"{prefix}1": z_L}

    def outputs(seed: int) -> Outputs:
        return {**decide(1, "first segment/", seed), **decide(agent.segments, EXACT, seed)}

    ids = inputs.observations(parts, 1, rows, 0)[0].flatten(1).long()
    kept = inputs.state(parts, rows, 0, torch.float32)
    start = inputs.starts(rows, seed=0)
    return Competitor(lambda: agent.decide(ids, (kept[0], kept[1]), start), outputs, cores)


def published_segments(parts: RunParts, rows: int, path: str, cores: int) -> Competitor:
    """A training segment of the published recipe."""
    agent = PublishedAgent(parts.policy, PUBLISHED[path])
    training = PublishedTraining(PublishedAgent(parts.policy, PUBLISHED[path]))

    def outputs(seed: int) -> Outputs:
        obs, kept, start, actions, targets = segment_inputs(parts, CHECKED_ROWS, seed, torch.float32)
        latents = agent.seed((kept[0], kept[1]), start)
        q, _ = agent.segment(obs.flatten(1).long(), latents)
        loss = torch.nn.functional.mse_loss(q.gather(1, actions[:, None]).squeeze(1), targets)
        named = {n: g for n, g in gradients(loss, agent).items() if n.startswith(("answers", "core."))}
        named["answers"] = named["answers"][:ACTIONS]
        return {"q": q, "loss": loss, **named}

    obs, kept, start, actions, targets = segment_inputs(parts, rows, 0, torch.float32)
    ids = obs.flatten(1).long()

    def run() -> None:
        training.segment(ids, training.agent.seed((kept[0], kept[1]), start), actions, targets)

    return Competitor(run, outputs, cores)


def _renamed(ours: Competitor) -> Competitor:
    """Our outputs under the recipe's names, without those that the recipe has in another form."""

    def outputs(seed: int) -> Outputs:
        found = ours.outputs(seed)
        if "policy_head.weight" in found:
            found["answers"] = found["policy_head.weight"]
        return {name: t for name, t in found.items() if not name.startswith(("encoder", "policy_head"))}

    return Competitor(ours.run, outputs, ours.threads)
