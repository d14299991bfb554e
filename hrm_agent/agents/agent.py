"""A trained agent for use in other projects: `Agent.load(folder).predict(obs, state, episode_start)`.

`predict` follows Stable-Baselines3's convention, so that its `evaluate_policy(agent, env)` works.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from hrm_agent.agents.description import (
    AGENT_FILE,
    AGENT_VERSION,
    find_agent_folder,
    parse_description,
    write_description,
)
from hrm_agent.agents.inputs import StateReader, check_masks, parts_of, read_episode_start, read_observation
from hrm_agent.agents.probe import DistanceProbe, load_probe, save_probe
from hrm_agent.environments.action_masks import IGNORE, SETTING, has_mask, without_mask
from hrm_agent.environments.checked import closing
from hrm_agent.environments.make import make_env, make_vector_env
from hrm_agent.environments.sources import StoredId, check_stored
from hrm_agent.environments.spaces import space_to_dict
from hrm_agent.files.reading import CheckpointError
from hrm_agent.names.values import Depth, NonNegative, printable
from hrm_agent.parallel.memory import at_most
from hrm_agent.parallel.threads import one_thread
from hrm_agent.policies.carry import CARRY_WEIGHTS
from hrm_agent.policies.distributions import build_distribution
from hrm_agent.policies.encoders import build_encoder
from hrm_agent.policies.policy import Policy, PolicyConfig, Stop
from hrm_agent.tensors.files import allowance, load_weights, save_tensors
from hrm_agent.tensors.trees import to_tensors

WEIGHTS_FILE = "agent.safetensors"
MOST_TOKENS = 2**16


@dataclass(frozen=True)
class AgentOverrides:
    """Overrides of an agent's trained settings; None: its own. The weights of a replaced carry rule are dropped."""

    carry: str | None = None  # another carry rule than in training
    segments: Depth | None = None  # another number of segments per step than in training
    first_segments: Depth | None = None  # segments at the first step of an episode, where it is to think longer there
    stop: Stop | None = None  # another rule for when to stop thinking: fixed | latent_change | policy_kl
    stop_threshold: NonNegative | None = None  # of latent_change and policy_kl

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> AgentOverrides:
        """Its settings out of the options of a command, which are left without them."""
        return cls(**{name: options.pop(name) for name in cls.__annotations__ if name in options})

    def changes(self) -> dict[str, Any]:
        """Those that are given, by the names of `PolicyConfig`.

        Raises:
            ValueError: a threshold that is no number.
        """
        if self.stop_threshold is not None and not isinstance(self.stop_threshold, int | float):
            raise ValueError(f"stop_threshold={self.stop_threshold!r}: expected a number, 0 or more")
        return {name: value for name, value in vars(self).items() if value is not None}


class Agent:
    """A policy with its spaces and metadata.

    Args:
        policy: the network; put into evaluation mode.
        observation_space, action_space: of a single environment.
        info: JSON-able facts (environment id and options, frames trained, success on validation levels, ...). Where
            the agent was loaded, `info["env"]` is a `StoredId`: a text from a file, by which no module is imported.
        seed: of the actions drawn by `predict(deterministic=False)`.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: gym.Space,
        action_space: gym.Space,
        info: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.policy = policy.eval()
        self.observation_space, self.action_space = observation_space, action_space
        self.distribution = build_distribution(action_space)
        self.info = info or {}
        self.generator = torch.Generator().manual_seed(seed)
        self._parts, self._states = parts_of(observation_space), StateReader(self.policy)
        self._folder: Path | None = None  # where a probe may lie

    def __repr__(self) -> str:
        c = self.policy.config
        return (
            f"Agent({c.core}, carry={c.carry}, segments={c.segments}, env={self.info.get('env')}, "
            f"frames={self.info.get('frames')}, observations {self.observation_space})"
        )

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | bool | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Actions for one observation or a batch, and the state to pass to the next call.

        Args:
            observation: an element of the observation space, or a batch with one more dimension in front.
            state: returned by the last call; None begins an episode in every row.
            episode_start: bool or bool `[B]`, true where the observation begins an episode; None: nowhere,
                except where `state` is None.
            deterministic: the most probable action instead of a sampled one. Agents with Q-values always take the best.

        Returns:
            actions `[B, ...]` in the environment's format (without B for a single observation: a 0-d array where the
            action space is Discrete), and the state, a tuple of arrays.

        Raises:
            ValueError: the observation is no element of the agent's observation space, nor a batch of them: another
                shape, or ids outside it; its mask allows no action; or a state or `episode_start` that is not for so
                many rows.
        """
        observation, size, batched = read_observation(self._parts, observation)
        if self.policy.masked:
            check_masks(observation, self.distribution.sizes)
        device = self.policy.device
        obs = to_tensors(observation, device)
        if state is None:
            kept = self.policy.initial_state(size)
            start = torch.ones(size, dtype=torch.bool, device=device)
        else:
            kept = self._states.read(state, size)
            start = torch.as_tensor(read_episode_start(episode_start, size), device=device)
        # A batch that one core computes best is not divided, or another busy program would hold up every decision.
        is_small = size <= (self.policy.chunk_size or 0)
        with one_thread() if is_small else nullcontext():
            decision = self.policy.step(obs, kept, start)
        distribution = self.distribution
        if deterministic or self.policy.config.heads == "q":  # Q-values are no distribution to draw from
            actions = distribution.best(decision.logits)
        else:
            actions, _ = distribution.sample(decision.logits, self.generator)
        out = distribution.to_env(actions)
        return (out if batched else out[0]), tuple(s.cpu().numpy() for s in decision.state)

    def check_fits(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        """Raises: ValueError if this agent cannot play environments with these spaces."""
        for what, mine, theirs in (
            ("observation", self.observation_space, observation_space),
            ("action", self.action_space, action_space),
        ):
            if space_to_dict(mine) != space_to_dict(theirs):
                raise ValueError(
                    f"the agent's {what} space is {mine}, the environment's is {theirs}: they do not fit"
                    f"{_about_masks(mine, theirs)}"
                )

    def fit(self, observation_space: gym.Space) -> Agent:
        """This agent for grids of another size: itself for its own observation space, else a copy.

        Only the size of a grid may differ, not its ids, channels or type. The weights are the same; values that depend
        on the size (tables of rotary positions, the number of tokens) are recomputed.

        Raises:
            ValueError: another kind of space, or an agent with weights for one size of grid.
        """
        mine, theirs = space_to_dict(self.observation_space), space_to_dict(observation_space)
        if mine == theirs:
            return self
        if _without_size(mine) != _without_size(theirs):
            raise ValueError(
                f"the agent's observation space is {self.observation_space}, the environment's is "
                f"{observation_space}: they do not fit, and differ in more than the size of a grid"
                f"{_about_masks(self.observation_space, observation_space)}"
            )
        try:
            policy = Policy(self.policy.config, observation_space, self.action_space)
        except ValueError as error:
            raise ValueError(f"the agent does not fit observations {observation_space}: {error}") from None
        weights = self.policy.state_dict()
        tied = [
            name for name, t in policy.state_dict().items() if name not in weights or weights[name].shape != t.shape
        ]
        if tied:
            raise ValueError(
                f"the agent's weights {', '.join(tied[:3])}{', ...' * (len(tied) > 3)} belong to observations "
                f"{self.observation_space} and do not fit {observation_space}; only an agent without them, such as one "
                "with positions=none and mixing=conv, plays other sizes"
            )
        policy.load_state_dict(weights)
        return self._with(policy, observation_space)

    def fit_environment(self, env_id: str, options: dict[str, Any]) -> Agent:
        """`fit` to an environment, whose spaces must then be the agent's.

        Raises:
            ValueError: it cannot be made, or see `fit` and `check_fits`.
        """
        env = make_vector_env(env_id, 1, options)
        with closing(env):
            agent = self.fit(env.single_observation_space)
            agent.check_fits(env.single_observation_space, env.single_action_space)
        return agent

    def environment(
        self, env: str | None = None, env_options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Id and options of the environment it was trained on, or of `env`, with `env_options` changed.

        `env=MODULE:ID` imports the module when the environment is made. An id from the agent's file imports nothing: it
        is found among what `hrm_envs`, Gymnasium, the known packages and modules that are imported already register.

        Raises:
            ValueError: no `env` given, and the agent names none, or its file names one of a module not yet imported.
        """
        trained_on = self.info.get("env")
        env_id = env or trained_on
        if env_id is None:
            raise ValueError("the agent does not name its environment; give one with env=")
        if isinstance(env_id, StoredId):
            check_stored(env_id)
        own = (self.info.get("env_options") or {}) if env_id == trained_on else {}
        return env_id, {**own, **(env_options or {})}

    def make_env(self, **options: Any) -> gym.Env:
        """The environment it was trained on, in the wrappers of training: `hrm_agent.make_env`.

        Args:
            options: changed keyword arguments of the environment, and of `gymnasium.make` (`render_mode`).

        Raises:
            ValueError: the agent names no environment, or see `environment` and `hrm_agent.make_env`.
        """
        return make_env(*self.environment(env_options=options))

    def changed(self, overrides: AgentOverrides) -> Agent:
        """This agent with overrides of its trained settings: itself without any, else a copy.

        Raises:
            ValueError: an override that is not possible.
        """
        settings = overrides.changes()
        if not settings:
            return self
        trained = self.policy.config
        config = PolicyConfig.from_dict({**trained.to_dict(), **settings})
        policy = Policy(config, self.observation_space, self.action_space)
        weights = self.policy.state_dict()
        if policy.config.carry != trained.carry:
            weights = _without_carry(weights, policy, trained.carry)
        policy.load_state_dict(weights)
        return self._with(policy, self.observation_space)

    def _with(self, policy: Policy, observation_space: gym.Space) -> Agent:
        """A copy with another policy."""
        agent = Agent(policy.to(self.policy.device), observation_space, self.action_space, self.info)
        agent.generator.set_state(self.generator.get_state())
        agent._folder = self._folder
        return agent

    def load_probe(self) -> DistanceProbe | None:
        """The linear probe that lies beside the agent's weights; None where there is none of these weights.

        It reads from the latents of each token how many steps its cell is from the goal. `python -m hrm_agent.probe
        run=FOLDER` fits one and writes it.

        Raises:
            CheckpointError: the file is damaged, or does not fit the agent's latents.
        """
        return None if self._folder is None else load_probe(self._folder, self.policy)

    def save(self, folder: str | Path) -> None:
        """Write `agent.json`, a model card (`README.md`) and `agent.safetensors`, the weights last, each atomically.

        The agent's probe (`load_probe`), if it has one, is written too.

        An edited `README.md`, one that differs from the card of the agent saved there before, is not overwritten.
        """
        folder = Path(folder)
        description = {
            "agent_version": AGENT_VERSION,
            "policy": self.policy.config.to_dict(),
            "observation_space": space_to_dict(self.observation_space),
            "action_space": space_to_dict(self.action_space),
            "info": self.info,
        }
        probe = self.load_probe()
        write_description(folder, description)
        if probe is not None:
            save_probe(folder, probe)
        save_tensors(folder / WEIGHTS_FILE, self.policy.state_dict(), {"kind": "agent"})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        carry: str | None = None,
        segments: int | None = None,
        best: bool = True,
        stop: str | None = None,
        stop_threshold: float | None = None,
        observation_space: gym.Space | None = None,
        first_segments: int | None = None,
    ) -> Agent:
        """Read an agent from its own folder, or from a training run's folder (its best agent, else its last).

        Args:
            folder: of the agent or of the run.
            carry, segments, stop, stop_threshold, first_segments: see `AgentOverrides`.
            best: from a run's folder, the best agent on validation levels rather than the last.
            observation_space: for grids of another size than in training, see `fit`.

        Raises:
            CheckpointError: the agent is missing, of another version, truncated or altered, or its files say what no
                agent is; nothing large is built before its weights are there.
            ValueError: an override that is not possible.
        """
        folder = find_agent_folder(Path(folder), best)
        config, observations, actions, info = parse_description(folder)
        policy = _build(config, observations, actions, folder)
        policy.load_state_dict(load_weights(folder / WEIGHTS_FILE, policy.state_dict())[0])
        overrides = AgentOverrides(carry, segments, first_segments, stop, stop_threshold)
        agent = cls(policy, observations, actions, info)
        agent._folder = folder
        agent = agent.changed(overrides)
        return agent if observation_space is None else agent.fit(observation_space)


def _build(config: PolicyConfig, observations: gym.Space, actions: gym.Space, folder: Path) -> Policy:
    """The policy that a folder describes, whose size its weights' file bounds.

    Raises:
        CheckpointError: it is larger, there are no weights, or its settings are none of a policy.
    """
    too_large = f"{folder}: weights do not fit: {AGENT_FILE} describes a network larger than {WEIGHTS_FILE}"
    with at_most(allowance(folder / WEIGHTS_FILE), too_large):
        try:
            with torch.random.fork_rng(devices=[]):
                tokens = build_encoder(without_mask(observations), config.hidden_size, config.encoder).length
            if tokens > MOST_TOKENS:  # tables of positions are not in the file
                raise ValueError(f"{tokens:,} tokens; expected {MOST_TOKENS:,} at most")
            return Policy(config, observations, actions)
        except ValueError as error:  # a core that there is not, or settings that do not fit together
            raise CheckpointError(f"{folder / AGENT_FILE}: {printable(str(error))}") from None


def _without_carry(tensors: dict[str, torch.Tensor], policy: Policy, trained_carry: str) -> dict[str, torch.Tensor]:
    """The weights without those of the replaced carry rule; the new one must not need any."""
    rule = policy.config.carry
    missing = [name for name in policy.state_dict() if name.startswith(CARRY_WEIGHTS)]
    if missing:
        raise ValueError(
            f"carry={rule}: it has weights of its own ({', '.join(missing)}), which an agent trained with "
            f"carry={trained_carry} lacks; choose a rule without weights, such as reset or full"
        )
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(CARRY_WEIGHTS)}


def _about_masks(mine: gym.Space, theirs: gym.Space) -> str:
    """What to do where an agent and an environment do not both know masks of legal actions."""
    if has_mask(theirs) and not has_mask(mine):
        return f"; it was trained without the action masks that this environment gives: env_options.{SETTING}={IGNORE}"
    if has_mask(mine) and not has_mask(theirs):
        return "; it needs action masks in the observation, where hrm_agent.make_env puts those that are given"
    return ""


def _without_size(space: dict[str, Any]) -> dict[str, Any]:
    """A space's description (`space_to_dict`) with the rows and columns of grids left out."""
    if space["type"] == "Dict":
        return {**space, "spaces": {key: _without_size(sub) for key, sub in space["spaces"].items()}}
    is_grid = space["type"] == "Box" and len(space["shape"]) >= 2 and not isinstance(space["high"], list)
    return {**space, "shape": ["rows", "cols", *space["shape"][2:]]} if is_grid else space
