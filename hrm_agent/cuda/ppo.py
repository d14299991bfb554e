"""PPO whose minibatch step is replayed, and whose statistics are looked at once an update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent.algos.ppo import PPO
from hrm_agent.cuda.core import CoreForward
from hrm_agent.experience.rollout import Rollout, Windows
from hrm_agent.parallel.graphs import Capture, Replayed, Say, copy_into
from hrm_agent.policies.encoders import map_observation
from hrm_agent.tensors.gradients import NonFiniteNumbers, set_gradients


class CudaPPO(PPO):
    """`PPO` with the same steps on the same minibatches.

    The optimizer's learning rate and the entropy bonus are tensors, which a graph reads anew. Where a gradient is not
    finite the optimizer leaves the weights alone from then on, on the device; the host learns of it, and raises, when
    the update is over.

    Args:
        ppo: whose policy, settings and random stream are taken over; it is not to be used any more.
        forward: the hook on the policy's core.
        capture: how the step is recorded; None: it is not.
        say: told where that fails.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, ppo: PPO, forward: CoreForward, capture: Capture | None, say: Say) -> None:
        self.policy, self.config, self.shards = ppo.policy, ppo.config, ppo.shards
        self.parameters, self.generator, self.processes = ppo.parameters, ppo.generator, ppo.processes
        self.forward = forward
        device = self.policy.device
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(self.config.learning_rate, device=device),
            eps=1e-5,
            weight_decay=self.config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.entropy_coef = torch.zeros((), device=device)
        self.failed = torch.zeros((), device=device)  # 1 from the first gradient on that is not finite
        self.index = torch.zeros(self.config.minibatch_windows, dtype=torch.int64, device=device)
        self.normalised = torch.zeros(self.config.window, self.config.minibatch_windows, device=device)
        self.windows: Windows | None = None
        self.names: list[str] = []
        self.step = Replayed("PPO's minibatch step", self._step, capture, self._kept, say)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """As `PPO.update`, with one look at the device's numbers.

        Raises:
            NonFiniteNumbers: the weights are as they were before the offending minibatch.
        """
        config = self.config
        remaining = 1.0 - progress if config.anneal else 1.0
        for group in self.optimizer.param_groups:
            group["lr"].fill_(config.learning_rate * remaining)
        self.entropy_coef.fill_(config.entropy_coef * remaining)
        self.failed.zero_()
        advantages, returns = rollout.advantages(config.gamma, config.gae_lambda)
        windows = rollout.windows(advantages, returns)
        self._load(windows)
        batches = [self._draw_minibatches(rollout) for _ in range(config.epochs)]
        normalised = self._normalise(windows.advantages, torch.cat(batches)).split(len(batches[0]))
        rows: list[Tensor] = []
        for epoch in range(config.epochs):
            if epoch and config.refresh_states:
                self._refresh(rollout)
                self._load(rollout.windows(advantages, returns))
            for columns, advantage in zip(batches[epoch], normalised[epoch], strict=True):
                copy_into((self.index, self.normalised), (columns, advantage))
                rows.append(self.step().clone())
        self.forward.weights_changed()
        return self._look(rows, rollout, returns, config.learning_rate * remaining)

    def _load(self, windows: Windows) -> None:
        if self.windows is None:
            self.windows = Windows(*(_clones(field) for field in windows))
        else:
            copy_into(tuple(self.windows), tuple(windows))

    def _kept(self) -> list[Tensor]:
        state = [t for s in self.optimizer.state.values() for t in s.values()]
        return [*self.parameters, *state, self.failed]

    def _step(self) -> Tensor:
        """One optimizer step on the windows of `index`: what was measured, float64 `[M]`."""
        assert self.windows is not None
        batch = self.windows.columns(self.index)._replace(advantages=self.normalised)
        loss, measured = self.tensor_loss(batch, self.entropy_coef, batch.returns.numel())
        set_gradients(self.parameters, [torch.autograd.grad(loss, self.parameters, allow_unused=True)])
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm or math.inf)
        self.failed.copy_(torch.maximum(self.failed, (~torch.isfinite(norm)).float()))
        # The fused optimizer skips its step where this is 1, as for a gradient scaler of mixed precision.
        self.optimizer.found_inf = self.failed  # type: ignore[attr-defined]
        self.optimizer.step()
        self.names = [*measured, "gradient_norm"]
        return torch.stack([*(m.double() for m in measured.values()), norm.detach().double()])

    def _look(self, rows: list[Tensor], rollout: Rollout, returns: Tensor, learning_rate: float) -> dict[str, float]:
        variance = returns.var()
        explained = torch.where(variance > 0, 1 - (returns - rollout.values).var() / variance, 0.0)
        failed, explained_variance = torch.stack([self.failed, explained]).tolist()
        table = torch.stack(rows).cpu()
        named = dict(zip(self.names, table.unbind(1), strict=True))
        if failed:
            norms = named["gradient_norm"]
            raise NonFiniteNumbers(f"gradient norm is {float(norms[~torch.isfinite(norms)][0])}")
        error, norm = named.pop("drift_error"), named.pop("drift_norm")
        drift = torch.where(norm > 0, error / norm, 0.0).sqrt().view(self.config.epochs, -1)[:, -1]
        return {
            **{name: float(values.mean()) for name, values in named.items()},
            **{f"state_drift_epoch{epoch}": float(value) for epoch, value in enumerate(drift)},
            "explained_variance": explained_variance,
            "learning_rate": learning_rate,
        }


def _clones(field: Any) -> Any:
    if isinstance(field, tuple):
        return tuple(t.clone() for t in field)
    return map_observation(Tensor.clone, field)
