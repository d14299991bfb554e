"""The policy: observation -> tokens -> K segments of a core -> readout -> heads.

The state is always passed in and out. `step` computes one environment step; `unroll` computes a window of consecutive
steps, with the same results as that many calls of `step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor, nn

from hrm_agent.cores import State, build_core, map_state
from hrm_agent.environments.action_masks import MASK, has_mask, without_mask
from hrm_agent.names.values import CountOrNone, Depth, NonNegative, Width, check_fields, one_of
from hrm_agent.parallel.threads import Threads, chunk_size
from hrm_agent.policies.carry import PolicyState, build_carry, resolve_carry
from hrm_agent.policies.distributions import INITIAL_LOG_STD, MASKED, build_distribution
from hrm_agent.policies.encoders import (
    EncoderConfig,
    GridEncoder,
    Observation,
    PictureEncoder,
    build_encoder,
    find_grid,
)
from hrm_agent.policies.frames import FrameStack
from hrm_agent.recurrence import Backend, Rules, Steps, Unrolled, run_segments, unroll
from hrm_agent.recurrence.unroll import STOPS, read_token, to_carried

READOUTS = ("agent", "mean", "first", "last")
HEADS = ("actor_critic", "q")
STOP_ALIASES = {"settled": "latent_change", "agreed": "policy_kl"}
"""Former names, still accepted in settings and saved agents."""

TimeGradient = Annotated[str, one_of(("bptt", "detached"))]
Readout = Annotated[str, one_of(READOUTS)]
Stop = Annotated[str, one_of(STOPS, former=STOP_ALIASES)]


@dataclass(frozen=True)
class PolicyConfig:
    """The settings that, with the spaces, define a policy.

    Args:
        core: name of the core (`hrm_agent.cores.build_core`).
        core_options: its options, without `hidden_size`, `length` and `grid`.
        hidden_size: width D of tokens and latents.
        carry: carry rule (`hrm_agent.policies.carry.CARRY_RULES`), or `auto`
            (`hrm_agent.policies.carry.resolve_carry`), which a policy replaces by the rule.
        segments: K, calls of the core per environment step; a maximum where `stop` is not `fixed`.
        stop: when to stop, decided for every row of a batch by itself: `fixed` after K segments;
            `latent_change` when a segment changed the latent by less than `stop_threshold`, relative to its norm;
            `policy_kl` when the policies after two successive segments differ by less than it (KL divergence in nats).
        stop_threshold: see `stop`; with 0 all K segments are run.
        first_segments: K of an episode's first decision; None: `segments`.
        time_gradient: `bptt` lets the gradient flow through the state between the steps of a window, `detached`
            cuts it at every step.
        readout: the token the heads read: the `agent`'s, the `mean` of all, the `first` or the `last`.
        heads: `actor_critic` (logits and a value) or `q` (Q-values, whose maximum is the value).
        agent_id: the id that marks the agent in a grid observation, for `readout=agent`.
        encoder: how observations become tokens.
    """

    core: str = "trm"
    core_options: dict[str, Any] = field(default_factory=dict)
    hidden_size: Width = 32
    carry: str = "full"
    segments: Depth = 1  # K, calls of the core per environment step; the most of them unless stop=fixed
    time_gradient: TimeGradient = "bptt"  # bptt | detached: does the gradient flow through the state between steps?
    readout: Readout = "agent"  # agent | mean | first | last: the token that the heads read
    heads: Annotated[str, one_of(HEADS)] = "actor_critic"
    stop: Stop = "fixed"  # fixed | latent_change | policy_kl: think on until it is below the threshold
    first_segments: Depth | None = None  # K of the first decision of an episode; null: as many as of the others
    stop_threshold: NonNegative = 0.0  # relative change of the latent, or KL divergence in nats; 0: run all segments
    agent_id: CountOrNone = 3
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        check_fields(self, hidden_size="core.hidden_size")
        object.__setattr__(self, "stop", STOP_ALIASES.get(self.stop, self.stop))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON; without what earlier versions do not know, where it changes nothing."""
        values = {name: value for name, value in asdict(self).items() if (name, value) != ("first_segments", None)}
        if values["encoder"]["frames"] == 1:
            del values["encoder"]["frames"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyConfig:
        return cls(**{**values, "encoder": EncoderConfig(**values["encoder"])})


class Decision(NamedTuple):
    """A policy's output, with a leading dimension of steps where it was unrolled.

    Attributes:
        logits: float `[..., B, P]`, parameters of the distribution over actions: unnormalised log-probabilities, the
            actions' Q-values, or means and logarithms of deviations (`hrm_agent.policies.distributions`). Those of
            actions that are not legal are `MASKED`.
        value: float `[..., B]`.
        state: the carried state for the next step.
        segments: int64 `[..., B]`, segments used by each row.
    """

    logits: Tensor
    value: Tensor
    state: PolicyState
    segments: Tensor


class Segment(NamedTuple):
    """One segment of one environment step.

    Attributes:
        state: the core's state after it.
        output: float `[B, L, D]`, the core's output tokens.
        decision: the policy's decision and carried state if it stopped here.
    """

    state: State
    output: Tensor
    decision: Decision


class Policy(nn.Module):
    """A recurrent policy. It holds no state; `backend` (`hrm_agent.recurrence.use`) selects how it is computed.

    Args:
        config: see `PolicyConfig`.
        observation_space, action_space: of a single environment. Where observations hold a mask of legal actions
            (`hrm_agent.environments.action_masks.has_mask`), the others have probability 0 and no gradient; the encoder
            is that of the observations without the mask.

    Raises:
        ValueError: a space that no encoder or distribution supports, or settings that do not fit together.
    """

    backend: Backend | None = None

    def __init__(self, config: PolicyConfig, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.distribution = build_distribution(action_space)
        if config.heads == "q" and not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(f"action space {action_space}: Q-values (algo=dqn) need Discrete; use algo=ppo")
        self.config = config
        self.segments = config.segments
        self._chunk_sizes: dict[str, int | None] = {}
        self.masked = has_mask(observation_space)
        self._check_mask(observation_space)
        seen, frames = without_mask(observation_space), config.encoder.frames
        self._only_entry = self.masked and not isinstance(seen, gym.spaces.Dict)
        self.frames = FrameStack(seen, frames) if frames > 1 else None
        seen = seen if self.frames is None else self.frames.space
        self.encoder = build_encoder(seen, config.hidden_size, config.encoder)
        # Images and channels are embedded by torch, for which one thread for a whole batch is too slow.
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
        # Small initial policy logits: near-uniform actions (Andrychowicz et al. 2021, arXiv 2006.05990).
        nn.init.normal_(self.policy_head.weight, std=0.01)
        nn.init.zeros_(self.policy_head.bias)
        free = self.distribution.free
        self.free_params = nn.Parameter(torch.full((free,), INITIAL_LOG_STD)) if free else None
        self.value_head = None if config.heads == "q" else nn.Linear(config.hidden_size, 1)
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.bias)

    def _check_mask(self, space: gym.Space) -> None:
        distribution = self.distribution
        if self.masked and (not distribution.sizes or space[MASK].shape != (distribution.outputs,)):  # type: ignore[index]
            what = f"{distribution.outputs} actions" if distribution.sizes else "no finite number of actions"
            raise ValueError(f"observation space {space}: its {MASK} does not fit {what}; expected a bit for each")

    def _check_gradient_path(self) -> None:
        """Refuse settings with which no gradient flows through time: cycles without one cut the incoming state."""
        config = self.config
        if config.time_gradient == "bptt" and config.carry != "reset" and not self.core.gradient_reaches_state:
            raise ValueError(
                f"time_gradient=bptt with core.cycle_gradient=last and core.H_cycles={self.core.H_cycles}: no gradient "
                "reaches the carried state; use core.cycle_gradient=all, core.H_cycles=1 or time_gradient=detached"
            )

    def _check_stop(self) -> None:
        if self.config.stop == "latent_change" and not self.core.initial_state(1):
            raise ValueError(f"stop=latent_change: core={self.config.core} has no latent; use stop=fixed or policy_kl")
        if self.config.stop == "policy_kl" and self.config.heads == "q":
            raise ValueError("stop=policy_kl needs a policy, not Q-values; use stop=latent_change or fixed")

    @property
    def chunk_size(self) -> int | None:
        """Rows of a batch that are best computed at once on this device; None: no limit."""
        kind = self.device.type
        if kind not in self._chunk_sizes:  # walks all modules, and is needed at every decision
            self._chunk_sizes[kind] = chunk_size(self, self.encoder.length, self.device)
        return self._chunk_sizes[kind]

    def slices(self, threads: Threads, rows: int, divisible: bool = True) -> list[slice]:
        """The parts in which a batch is computed: slices for threads, or the whole where the kernels divide it.

        In one part, the operations around the kernels run once instead of once per slice. A batch larger than
        `chunk_size` is split even so: its saved activations would take too much memory.

        Args:
            divisible: False for work outside of `step` and `unroll`, whose kernels divide a batch.
        """
        largest, whole = self.chunk_size, False
        if divisible and self._encodes_cheaply and self.backend is not None:
            fits = largest is None or rows <= largest * threads.count
            whole = fits and self.backend.divides(self.core, self.carry, self.rules)
        self.divide(threads.count if whole else 1)
        return [slice(0, rows)] if whole else threads.slices(rows, largest)

    def divide(self, threads: int) -> None:
        """Let the kernels divide a batch over this many threads from now on."""
        if self.backend is not None:
            self.backend.threads = threads

    @property
    def device(self) -> torch.device:
        return self.policy_head.weight.device

    def initial_state(self, batch_size: int) -> PolicyState:
        """The carried state before any step; `episode_start` replaces its values, so only the shapes matter."""
        state = self.carry.initial(batch_size)
        return state if self.frames is None else (*state, self.frames.initial(batch_size, self.device))

    def legal(self, obs: Observation) -> Tensor | None:
        """The actions that observations allow, bool `[..., P]`; None where they hold no mask.

        Where a choice has none, as after an episode's end, it has all: what is computed there is not used.
        """
        if not self.masked:
            return None
        assert isinstance(obs, Mapping)
        return self.distribution.open_choices(obs[MASK] != 0)

    def seen(self, obs: Observation) -> Observation:
        """Observations as the encoder reads them, without a mask of legal actions."""
        if not self.masked:
            return obs
        assert isinstance(obs, Mapping)
        rest = {key: part for key, part in obs.items() if key != MASK}
        return next(iter(rest.values())) if self._only_entry else rest

    def with_all_actions(self, obs: Observation) -> Observation:
        """The same observations with every action legal."""
        if not self.masked:
            return obs
        assert isinstance(obs, Mapping)
        return {**obs, MASK: torch.ones_like(obs[MASK])}

    def stacked(
        self, obs: Observation, state: PolicyState, episode_start: Tensor
    ) -> tuple[Observation, PolicyState, PolicyState]:
        """What the encoder reads at one step, the state that the carry rule knows, and the earlier frames after it.

        Without frame stacking these are `seen(obs)`, the state that was given, and nothing.
        """
        obs = self.seen(obs)
        if self.frames is None:
            return obs, state, ()
        assert isinstance(obs, Tensor)
        window, carried, past = self.frames.stack(obs[None], state, episode_start[None])
        return window[0], carried, past

    def step(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        """One environment step: obs `[B, ...]`, episode_start bool `[B]`."""
        legal = self.legal(obs)
        obs, state, past = self.stacked(obs, state, episode_start)
        tokens, index = self.encoder(obs), self._readout_index(obs)
        read = None if index is None else index[None]
        steps = Steps(tokens[None], state, episode_start[None], read, None if legal is None else legal[None])
        # It is the only step of its window, so there is nothing to detach.
        one = self._unroll(steps, False)
        return self._decide(one.reads[0], (*one.state, *past), one.segments[0], legal)

    def unroll(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        """A window of k steps: obs `[k, B, ...]`, episode_start `[k, B]`, state before the first step.

        Returns logits `[k, B, A]`, value and segments `[k, B]`, and the state after the last step.
        """
        detach = self.config.time_gradient == "detached"
        past: PolicyState = ()
        legal, obs = self.legal(obs), self.seen(obs)
        if self.frames is not None:
            assert isinstance(obs, Tensor)
            obs, state, past = self.frames.stack(obs, state, episode_start)
        window = self._unroll(Steps(self.encoder(obs), state, episode_start, self._readout_index(obs), legal), detach)
        return self._decide(window.reads, (*window.state, *past), window.segments, legal)

    def _unroll(self, steps: Steps, detach: bool) -> Unrolled:
        return unroll(self.core, self.carry, steps, replace(self.rules, detach=detach), self.backend)

    @property
    def rules(self) -> Rules:
        """The rules of an environment step."""
        config = self.config
        return Rules(
            segments=self.segments,
            first_segments=config.first_segments,
            stop=config.stop,
            threshold=config.stop_threshold,
            readout=config.readout,
            params=self._params,
            divergence=self.distribution.divergence,
            output=self._output,
        )

    def segment_by_segment(
        self, obs: Observation, state: PolicyState, episode_start: Tensor, segments: int | None = None
    ) -> Iterator[Segment]:
        """The segments of one environment step, one at a time: K, or as many as given; `stop` is ignored.

        Every segment encodes the observation with the current weights and starts from the detached state of the segment
        before: weights may change between segments, as in HRM-Agent's training.
        """
        legal = self.legal(obs)
        obs, state, past = self.stacked(obs, state, episode_start)
        index, rules = self._readout_index(obs), self.rules
        latent: State | None = None
        for number in range(1, (segments or self.segments) + 1):
            tokens = self.encoder(obs)
            if latent is None:
                before = self.carry.to_core_state(state, episode_start, tokens)  # a rule may have weights to learn
            else:
                before = map_state(Tensor.detach, latent)
            output, latent = run_segments(self.core, tokens, before, 1, self.backend)
            read = read_token(output, rules.readout, index)
            carried = (*to_carried(self.carry, latent, read, rules, legal), *past)
            used = torch.full(episode_start.shape, number, device=episode_start.device)
            yield Segment(latent, output, self._decide(read, carried, used, legal))

    def _output(self, read: Tensor, legal: Tensor | None = None) -> Tensor:
        """The input of carry rules with `from_output`: Q-values, or a summary of the distribution.

        It is 0 for actions that are not legal.
        """
        if self.config.heads == "q":
            values = self._params(read)
            return values if legal is None else values.masked_fill(~legal, 0.0)
        return self.distribution.summary(self._params(read, legal))

    def _decide(self, read: Tensor, kept: PolicyState, segments: Tensor, legal: Tensor | None) -> Decision:
        logits = self._params(read, legal)
        value = logits.amax(-1) if self.value_head is None else self.value_head(read).squeeze(-1)
        return Decision(logits, value, kept, segments)

    def _params(self, read: Tensor, legal: Tensor | None = None) -> Tensor:
        """Parameters of the distribution over actions, `[..., P]`; `MASKED` where they are not legal."""
        outputs = self.policy_head(read)
        if legal is not None:
            return outputs.masked_fill(~legal, MASKED)
        if self.free_params is None:
            return outputs
        return torch.cat([outputs, self.free_params.expand(*outputs.shape[:-1], -1)], dim=-1)

    def _readout_index(self, obs: Observation) -> Tensor | None:
        if self.config.readout != "agent" or self._grid is None:
            return None
        return agent_token(self._grid, obs, self.config.agent_id)


def agent_token(found: tuple[GridEncoder, str | None, int], obs: Observation, agent_id: int) -> Tensor:
    """Which of an observation's tokens holds the agent's cell, int64 of the observations' leading dimensions.

    Args:
        found: what `hrm_agent.policies.encoders.find_grid` gives.
        agent_id: the id that marks the agent.
    """
    encoder, key, before = found
    return encoder.token_of(obs if isinstance(obs, Tensor) else obs[key or ""], agent_id) + before
