"""A linear probe of an agent's latents, kept beside its weights: how many steps is each cell from the goal?

`hrm_agent.evaluation.probes.fit_distance_probe` fits one, `python -m hrm_agent.probe` writes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hrm_agent.files.reading import CheckpointError
from hrm_agent.policies.carry import CARRY_WEIGHTS
from hrm_agent.policies.policy import Policy
from hrm_agent.policies.tokens import latents_of_tokens
from hrm_agent.tensors.files import check_weights, digest, load_tensors, save_tensors

PROBE_FILE = "probe.safetensors"
KIND = "distance_probe"
LIMIT = 2**24
"""Bytes of the file; a probe of 8 segments and 128 latents has five thousand."""
MOST_SEGMENTS = 1024
FARTHEST = 10_000.0
"""Steps; the largest distance that is read."""


@dataclass(frozen=True)
class DistanceProbe:
    """Linear maps from the latents of a token to log(1 + steps to the goal) of its cell, one for each segment.

    Attributes:
        weights: float32 `[S, F]`.
        intercepts: float32 `[S]`.
        policy: SHA-256 of the weights of the policy that it belongs to (`identify`).
    """

    weights: Tensor
    intercepts: Tensor
    policy: str

    def read(self, latents: Tensor, segment: int) -> Tensor:
        """Steps to the goal, float32 `[...]` from 0 to `FARTHEST`.

        Args:
            latents: `[..., F]` of tokens (`hrm_agent.policies.tokens.latents_of_tokens`).
            segment: after which they are, from 1; after those that were fitted, the last one's map is used.
        """
        at = min(segment, len(self.weights)) - 1
        weights, intercept = self.weights[at].to(latents.device), self.intercepts[at].to(latents.device)
        return (latents.float() @ weights + intercept).nan_to_num().clamp(0, math.log1p(FARTHEST)).expm1()


def identify(policy: Policy) -> str:
    """SHA-256 of a policy's weights; those of a carry rule, which may be replaced, are left out."""
    weights = {name: t.cpu() for name, t in policy.state_dict().items() if not name.startswith(CARRY_WEIGHTS)}
    return digest(weights)


def save_probe(folder: Path, probe: DistanceProbe) -> None:
    """Write `probe.safetensors` to an agent's own folder, atomically."""
    tensors = {"weights": probe.weights, "intercepts": probe.intercepts}
    save_tensors(folder / PROBE_FILE, tensors, {"kind": KIND, "policy": probe.policy})


def load_probe(folder: Path, policy: Policy) -> DistanceProbe | None:
    """The probe in an agent's own folder; None where there is none, or one that was fitted to other weights.

    Raises:
        CheckpointError: the file is damaged, larger than a probe, or none that fits the policy's latents.
    """
    file = folder / PROBE_FILE
    if not file.is_file():
        return None
    if file.stat().st_size > LIMIT:
        raise CheckpointError(f"{file}: {file.stat().st_size:,} bytes; expected {LIMIT:,} at most")
    tensors, metadata = load_tensors(file)
    if metadata.get("kind") != KIND:
        raise CheckpointError(f"{file}: not a distance probe; python -m hrm_agent.probe run={folder} writes one")
    if metadata.get("policy") != identify(policy):
        return None
    segments = min(len(t) if t.dim() else 0 for t in tensors.values()) if tensors else 0
    if not 1 <= segments <= MOST_SEGMENTS:
        raise CheckpointError(f"{file}: maps of {segments} segments; expected 1 to {MOST_SEGMENTS}")
    expected = {"weights": torch.zeros(segments, latents_per_token(policy)), "intercepts": torch.zeros(segments)}
    check_weights(file, tensors, expected)
    return DistanceProbe(tensors["weights"].float(), tensors["intercepts"].float(), str(metadata["policy"]))


def latents_per_token(policy: Policy) -> int:
    """F of `latents_of_tokens`; 0 for a core without a latent per token."""
    latents = latents_of_tokens(policy, policy.core.initial_state(1))
    return 0 if latents is None else latents.shape[-1]
