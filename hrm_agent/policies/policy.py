"""The policy: observation -> tokens -> K segments of a core -> readout -> heads.

The state is always passed in and out. `step` decides for one environment step; `unroll` replays a window of
consecutive steps, and gives the same numbers as that many calls of `step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from hrm_agent.cores import State, build_core, map_state
from hrm_agent.kernels import Switched
from hrm_agent.kernels.cpu.window import Rule, Thinking, WindowPlan
from hrm_agent.parallel.threads import Threads, chunk_size
from hrm_agent.policies.carry import PolicyState, build_carry, resolve_carry
from hrm_agent.policies.distributions import INITIAL_LOG_STD, build_distribution
from hrm_agent.policies.encoders import (
    EncoderConfig,
    GridEncoder,
    Observation,
    PictureEncoder,
    build_encoder,
    find_grid,
)

READOUTS = ("agent", "mean", "first", "last")
HEADS = ("actor_critic", "q")
STOPS = ("fixed", "latent_change", "policy_kl")
STOP_ALIASES = {"settled": "latent_change", "agreed": "policy_kl"}
"""Names that saved agents and runs may hold."""


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that, with the spaces, defines a policy.

    Args:
        core: name of the core (`hrm_agent.cores.build_core`).
        core_options: its options, without `hidden_size`, `length` and `grid`.
        hidden_size: width D of tokens and latents.
        carry: carry rule (`hrm_agent.policies.carry.CARRY_RULES`), or `auto`
            (`hrm_agent.policies.carry.resolve_carry`), which a policy replaces by the rule.
        segments: K, calls of the core per environment step; the most of them where thinking may stop earlier.
        stop: when to stop thinking, decided for every row of a batch by itself: `fixed` after K segments;
            `latent_change` when a segment changed the latent by less than `stop_threshold`, relative to its norm;
            `policy_kl` when the policies after two successive segments differ by less than it (KL divergence in nats).
        stop_threshold: see `stop`; with 0 all K segments are run.
        time_gradient: `bptt` lets the gradient flow through the state between the steps of a window, `detached`
            cuts it at every step.
        readout: the token the heads read: the `agent`'s, the `mean` of all, the `first` or the `last`.
        heads: `actor_critic` (logits and a value) or `q` (Q-values, whose maximum is the value).
        agent_id: the id that marks the agent in a grid observation, for `readout=agent`.
        encoder: how observations become tokens.
    """

    core: str = "trm"
    core_options: dict[str, Any] = field(default_factory=dict)
    hidden_size: int = 32
    carry: str = "full"
    segments: int = 1
    time_gradient: str = "bptt"
    readout: str = "agent"
    heads: str = "actor_critic"
    stop: str = "fixed"
    stop_threshold: float = 0.0
    agent_id: int = 3
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ValueError(f"core.hidden_size={self.hidden_size}: expected 1 or more")
        if type(self.segments) is not int or self.segments < 1:
            raise ValueError(
                f"segments={self.segments!r}: a policy thinks for at least 1 segment per step; give an integer"
            )
        if self.time_gradient not in ("bptt", "detached"):
            raise ValueError(f"time_gradient={self.time_gradient!r}: expected 'bptt' or 'detached'")
        if self.readout not in READOUTS:
            raise ValueError(f"readout={self.readout!r}: expected one of {', '.join(READOUTS)}")
        if self.heads not in HEADS:
            raise ValueError(f"heads={self.heads!r}: expected one of {', '.join(HEADS)}")
        object.__setattr__(self, "stop", STOP_ALIASES.get(str(self.stop), self.stop))
        if self.stop not in STOPS:
            raise ValueError(f"stop={self.stop!r}: expected one of {', '.join(STOPS)}")
        if not self.stop_threshold >= 0:
            raise ValueError(f"stop_threshold={self.stop_threshold}: expected 0 or more")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyConfig:
        return cls(**{**values, "encoder": EncoderConfig(**values["encoder"])})


class Decision(NamedTuple):
    """What a policy says, with a leading dimension of steps where it was unrolled.

    Attributes:
        logits: float `[..., B, P]`, parameters of the distribution over actions: unnormalised log-probabilities, the
            actions' Q-values, or means and logarithms of deviations (`hrm_agent.policies.distributions`).
        value: float `[..., B]`.
        state: what is kept for the next step.
        segments: int64 `[..., B]`, segments that each row was thought over for.
    """

    logits: Tensor
    value: Tensor
    state: PolicyState
    segments: Tensor


class Segment(NamedTuple):
    """One segment of thought about one environment step.

    Attributes:
        state: the core's state after it.
        output: float `[B, L, D]`, the core's output tokens.
        decision: what the policy would say and keep if it stopped here.
    """

    state: State
    output: Tensor
    decision: Decision


class Policy(nn.Module):
    """A recurrent policy. No state lives on the module.

    Args:
        config: see `PolicyConfig`.
        observation_space, action_space: of a single environment.

    Raises:
        ValueError: a space that no encoder or distribution suits, or settings that do not fit together.
    """

    def __init__(self, config: PolicyConfig, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.distribution = build_distribution(action_space)
        if config.heads == "q" and not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(f"action space {action_space}: Q-values (algo=dqn) need Discrete; use algo=ppo")
        self.config = config
        self.segments = config.segments
        self._chunk_sizes: dict[str, int | None] = {}
        self.threads = 1  # that the kernels divide a batch over; see `slices`
        self.encoder = build_encoder(observation_space, config.hidden_size, config.encoder)
        self._divided = [m for m in self.encoder.modules() if isinstance(m, Switched)]
        # Pictures and channels are embedded by torch, for which one thread for a whole batch is too slow.
        self._encodes_cheaply = not any(
            isinstance(m, PictureEncoder) or getattr(m, "channels", 1) > 1 for m in self.encoder.modules()
        )
        self.core = build_core(
            config.core,
            hidden_size=config.hidden_size,
            length=self.encoder.length,
            grid=self.encoder.grid,
            **config.core_options,
        )
        config = self.config = replace(config, carry=resolve_carry(config.carry, self.core))
        self.carry = build_carry(config.carry, self.core, self.distribution.summary_size)
        self._check_gradient_path()
        self._check_stop()
        self._grid = find_grid(self.encoder)
        if config.readout == "agent" and self._grid is None:
            raise ValueError(f"readout=agent needs a grid observation, got {observation_space}; use readout=mean")
        self.policy_head = nn.Linear(config.hidden_size, self.distribution.outputs)
        # Small policy logits at the start: near-uniform actions (Andrychowicz et al. 2021, arXiv 2006.05990).
        nn.init.normal_(self.policy_head.weight, std=0.01)
        nn.init.zeros_(self.policy_head.bias)
        free = self.distribution.free
        self.free_params = nn.Parameter(torch.full((free,), INITIAL_LOG_STD)) if free else None
        self.value_head = None if config.heads == "q" else nn.Linear(config.hidden_size, 1)
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.bias)

    def _check_gradient_path(self) -> None:
        """Cycles without gradient cut the path from the state that comes in: nothing would flow through time."""
        cycles = getattr(self.core, "H_cycles", 1)
        cut = cycles > 1 and getattr(self.core, "cycle_gradient", "all") == "last"
        if cut and self.config.time_gradient == "bptt" and self.config.carry != "reset":
            raise ValueError(
                f"time_gradient=bptt with core.cycle_gradient=last and core.H_cycles={cycles}: no gradient reaches "
                "the carried state; use core.cycle_gradient=all, core.H_cycles=1 or time_gradient=detached"
            )

    def _check_stop(self) -> None:
        if self.config.stop == "latent_change" and not self.core.initial_state(1):
            raise ValueError(
                f"stop=latent_change: core={self.config.core} has no latent that changes; use stop=fixed or policy_kl"
            )
        if self.config.stop == "policy_kl" and self.config.heads == "q":
            raise ValueError("stop=policy_kl compares policies, and Q-values are none; use stop=latent_change or fixed")

    @property
    def chunk_size(self) -> int | None:
        """Rows of a batch that are best thought about together on this device; None: as many as there are."""
        kind = self.device.type
        if kind not in self._chunk_sizes:  # walks all modules, and is asked for at every decision
            self._chunk_sizes[kind] = chunk_size(self, self.encoder.length, self.device)
        return self._chunk_sizes[kind]

    def slices(self, shards: Threads, rows: int, divisible: bool = True) -> list[slice]:
        """How a batch is dealt out to threads: in slices, or whole where the kernels divide it themselves.

        Whole, what surrounds the kernels is done once and not for every slice. A batch that is too large for that, by
        `chunk_size`, would keep too much for its gradient at a time.

        Args:
            divisible: False where not all is done by `step` and `unroll`, whose kernels divide a batch.
        """
        largest, found = self.chunk_size, self._planned() if divisible and self._encodes_cheaply else None
        whole = found is not None and found[0].divides and (largest is None or rows <= largest * shards.count)
        self.divide(shards.count if whole else 1)
        return [slice(0, rows)] if whole else shards.slices(rows, largest)

    def divide(self, threads: int) -> None:
        """Have the kernels divide a batch over so many threads from now on."""
        self.threads = threads
        for part in self._divided:
            part.threads = threads

    @property
    def device(self) -> torch.device:
        return self.policy_head.weight.device

    def initial_state(self, batch_size: int) -> PolicyState:
        """What is kept before any step. `episode_start` replaces it, so it only has to have the right shapes."""
        return self.carry.initial(batch_size)

    def step(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        """One environment step: obs `[B, ...]`, episode_start bool `[B]`."""
        tokens, index = self.encoder(obs), self._readout_index(obs)
        found = self._window_plan(tokens, state)
        if found is not None:
            one = None if index is None else index[None]
            decision = self._think_window(found, tokens[None], state, episode_start[None], one, cut=False)
            return Decision(decision.logits[0], decision.value[0], decision.state, decision.segments[0])
        read, state, segments = self._think(tokens, state, episode_start, index)
        return self._decide(read, state, segments)

    def unroll(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        """A window of k steps: obs `[k, B, ...]`, episode_start `[k, B]`, state before the first step.

        Returns logits `[k, B, A]`, value and segments `[k, B]`, and the state after the last step.
        """
        tokens = self.encoder(obs)
        index = self._readout_index(obs)
        detached = self.config.time_gradient == "detached"
        found = self._window_plan(tokens, state)
        if found is not None:
            return self._think_window(found, tokens, state, episode_start, index, detached)
        reads, segments = [], []
        # unbind, not tokens[t]: its backward stacks the steps' gradients once, instead of adding k zero-padded ones.
        for t, step_tokens in enumerate(tokens.unbind(0)):
            if detached:
                state = tuple(s.detach() for s in state)
            at = None if index is None else index[t]
            read, state, used = self._think(step_tokens, state, episode_start[t], at)
            reads.append(read)
            segments.append(used)
        return self._decide(torch.stack(reads), state, torch.stack(segments))

    def _planned(self) -> tuple[WindowPlan, Rule] | None:
        """How kernels would think about a whole window, where there are such for these settings."""
        rule, plan = self.carry.window_rule(), self.core.window_plan()
        if rule is None or plan is None:
            return None
        early = self.config.stop if self.config.stop_threshold > 0 else "fixed"
        return (plan, rule) if early == "fixed" or (early == "latent_change" and plan.settles) else None

    def _window_plan(self, tokens: Tensor, state: PolicyState) -> tuple[WindowPlan, Rule] | None:
        """How the kernels think about a whole window, where they can."""
        found = self._planned()
        return found if found is not None and found[1].suits(tokens) and found[0].suits(tokens, state) else None

    def _think_window(
        self,
        found: tuple[WindowPlan, Rule],
        tokens: Tensor,
        state: PolicyState,
        episode_start: Tensor,
        index: Tensor | None,
        cut: bool,
    ) -> Decision:
        if index is None and self.config.readout != "mean":
            index = torch.full(tokens.shape[:2], 0 if self.config.readout == "first" else -1)
        settled = self.config.stop_threshold if self.config.stop == "latent_change" else 0.0
        thinking = Thinking(self.segments, settled, cut, self.threads)
        starts = episode_start.to(torch.bool).expand(tokens.shape[:2])
        plan, rule = found
        return self._decide(*plan.run(rule, thinking, tokens, state, starts, index))

    def segment_by_segment(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Iterator[Segment]:
        """The K segments of one environment step, one at a time; `stop` is not looked at.

        Every segment encodes the observation with the weights as they are then, and starts from the state that the
        one before ended in, detached: weights may be changed between them, as HRM-Agent's training does.
        """
        index = self._readout_index(obs)
        thought: State | None = None
        for number in range(1, self.segments + 1):
            tokens = self.encoder(obs)
            if thought is None:
                before = self.carry.to_core_state(
                    state, episode_start, tokens
                )  # a carry rule may have weights to learn
            else:
                before = map_state(Tensor.detach, thought)
            output, thought = self.core(tokens, before)
            read = self._read(output, index)
            kept = self._keep(thought, read)
            segments = torch.full(episode_start.shape, number, device=episode_start.device)
            yield Segment(thought, output, self._decide(read, kept, segments))

    def _think(
        self, tokens: Tensor, kept: PolicyState, episode_start: Tensor, index: Tensor | None
    ) -> tuple[Tensor, PolicyState, Tensor]:
        """One environment step: what the heads read `[B, D]`, what is kept, and the segments used `[B]`."""
        thought = self.carry.to_core_state(kept, episode_start, tokens)
        if self.config.stop == "fixed":
            output, thought = self._think_segments(tokens, thought)
            segments = torch.full(episode_start.shape, self.segments, device=episode_start.device)
        else:
            output, thought, segments = self._think_until_done(tokens, thought, index)
        read = self._read(output, index)
        return read, self._keep(thought, read), segments

    def _think_segments(self, tokens: Tensor, thought: State) -> tuple[Tensor, State]:
        """K segments: the core's output and its state."""
        plan = self.core.window_plan()
        if plan is not None and plan.suits(tokens, thought):
            output, after = plan.think(tokens, thought, self.segments)
            return output, map_state(lambda _, new: new, thought, after)
        output = tokens
        for _ in range(self.segments):
            output, thought = self.core(tokens, thought)
        return output, thought

    def _think_until_done(self, tokens: Tensor, thought: State, index: Tensor | None) -> tuple[Tensor, State, Tensor]:
        """At most K segments, of which each row takes as many as it needs: output, state and segments `[B]`."""
        size = tokens.shape[0]
        segments = torch.zeros(size, dtype=torch.int64, device=tokens.device)
        active = torch.arange(size, device=tokens.device)
        output, policies = tokens, None
        for _ in range(self.segments):
            everybody = active.numel() == size
            own = None if everybody or index is None else index[active]
            before = thought if everybody else map_state(lambda t: t[active], thought)  # noqa: B023
            new_output, after = self.core(tokens if everybody else tokens[active], before)
            if everybody:
                output, thought = new_output, after
            else:
                output = output.index_copy(0, active, new_output)
                thought = map_state(lambda t, new: t.index_copy(0, active, new), thought, after)  # noqa: B023
            segments[active] += 1
            with torch.no_grad():
                done, policies = self._done(before, after, new_output, index if everybody else own, policies)
            active = active[~done]
            policies = None if policies is None else policies[~done]
            if not active.numel():
                break
        return output, thought, segments

    def _done(
        self, before: State, after: State, output: Tensor, index: Tensor | None, policies: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Which rows may stop after a segment, bool `[M]`, and their policies `[M, P]` to compare the next with."""
        threshold = self.config.stop_threshold
        if self.config.stop == "latent_change":
            return relative_change(before, after) < threshold, None
        now = self._params(self._read(output, index))
        if policies is None:
            return torch.zeros(now.shape[0], dtype=torch.bool, device=now.device), now
        # A divergence is never below 0, so a threshold of 0 never stops anyone.
        return self.distribution.divergence(now, policies) < threshold, now

    def _keep(self, thought: State, read: Tensor) -> PolicyState:
        if not self.carry.from_output:
            return self.carry.from_core_state(thought, None)
        output = self._params(read)
        return self.carry.from_core_state(
            thought, output if self.config.heads == "q" else self.distribution.summary(output)
        )

    def _decide(self, read: Tensor, kept: PolicyState, segments: Tensor) -> Decision:
        logits = self._params(read)
        value = logits.amax(-1) if self.value_head is None else self.value_head(read).squeeze(-1)
        return Decision(logits, value, kept, segments)

    def _params(self, read: Tensor) -> Tensor:
        """Parameters of the distribution over actions, `[..., P]`."""
        outputs = self.policy_head(read)
        if self.free_params is None:
            return outputs
        return torch.cat([outputs, self.free_params.expand(*outputs.shape[:-1], -1)], dim=-1)

    def _readout_index(self, obs: Observation) -> Tensor | None:
        if self.config.readout != "agent" or self._grid is None:
            return None
        return agent_token(self._grid, obs, self.config.agent_id)

    def _read(self, latent: Tensor, index: Tensor | None) -> Tensor:
        return read_token(latent, self.config.readout, index)


def agent_token(found: tuple[GridEncoder, str | None, int], obs: Observation, agent_id: int) -> Tensor:
    """Which of an observation's tokens holds the agent's cell, int64 of the observations' leading dimensions.

    Args:
        found: what `hrm_agent.policies.encoders.find_grid` gives.
        agent_id: the id that marks the agent.
    """
    encoder, key, before = found
    return encoder.token_of(obs if isinstance(obs, Tensor) else obs[key or ""], agent_id) + before


def read_token(output: Tensor, readout: str, index: Tensor | None = None) -> Tensor:
    """What heads read of a core's output tokens `[B, L, D]`: float `[B, D]`.

    Args:
        readout: `mean`, `first` or `last`; not looked at where there is an `index`.
        index: int64 `[B]`, each row's token; below 0 it counts back from the end.
    """
    if index is not None:
        # Not take_along_dim, which torch.export takes for one of a fixed batch; like it, counts back from the end.
        at = (index % output.shape[1]).view(-1, 1, 1).expand(-1, 1, output.shape[2])
        return output.gather(1, at).squeeze(1)
    if readout == "mean":
        return output.mean(1)
    return output[:, 0] if readout == "first" else output[:, -1]


def relative_change(before: State, after: State) -> Tensor:
    """`||after - before|| / ||after||` of each row's whole latent, float `[B]`; the state must have tensors."""
    moved = torch.stack([(a - b).flatten(1).square().sum(1) for a, b in zip(after, before, strict=True)]).sum(0)
    norm = torch.stack([a.flatten(1).square().sum(1) for a in after]).sum(0)
    return (moved / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt()


def to_tensors(obs: Any, device: torch.device | str = "cpu") -> Observation:
    """Arrays of a vector environment -> tensors; dictionaries entry by entry."""
    if isinstance(obs, dict):
        return {key: to_tensors(value, device) for key, value in obs.items()}  # type: ignore[misc]
    return torch.as_tensor(np.require(obs, requirements="W"), device=device)  # torch wants memory it could write to
