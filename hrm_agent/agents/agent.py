"""A trained agent for use in other projects: `Agent.load(folder).predict(obs, state, episode_start)`.

`predict` follows Stable-Baselines3's convention, so that its `evaluate_policy(agent, env)` works.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from hrm_agent.agents.card import CARD_FILE, write_card
from hrm_agent.environments.sources import refuse_own_module
from hrm_agent.environments.spaces import space_from_dict, space_to_dict
from hrm_agent.files.reading import CheckpointError
from hrm_agent.files.writing import write_atomically
from hrm_agent.policies.distributions import build_distribution
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.tensors.files import load_tensors, save_tensors
from hrm_agent.tensors.trees import to_tensors

AGENT_FILE = "agent.json"
RUN_FILE = "run.json"  # of a training run, whose agents lie in RUN/agents/NAME
WEIGHTS_FILE = "agent.safetensors"
AGENT_VERSION = 1
CARRY_WEIGHTS = "carry."


@dataclass(frozen=True)
class AgentOverrides:
    """Overrides of an agent's trained settings; None: its own. The weights of a replaced carry rule are dropped."""

    carry: str | None = None  # another carry rule than in training
    segments: int | None = None  # another number of segments per step than in training
    stop: str | None = None  # another rule for when to stop thinking: fixed | latent_change | policy_kl
    stop_threshold: float | None = None  # of latent_change and policy_kl

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
        info: JSON-able facts (environment id and options, frames trained, success on validation levels, ...).
        seed: of the actions drawn by `predict(deterministic=False)`.
        folder: where it was loaded from, the run's folder for an agent in a run; None: it was not loaded.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: gym.Space,
        action_space: gym.Space,
        info: dict[str, Any] | None = None,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.policy = policy.eval()
        self.observation_space, self.action_space = observation_space, action_space
        self.distribution = build_distribution(action_space)
        self.info, self.folder = info or {}, folder
        self.generator = torch.Generator().manual_seed(seed)

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
            ValueError: the observation does not fit the agent's observation space.
        """
        observation, batched = self._as_batch(observation)
        device = self.policy.device
        obs = to_tensors(observation, device)
        size = len(obs) if isinstance(obs, torch.Tensor) else len(next(iter(obs.values())))
        if state is None:
            kept = self.policy.initial_state(size)
            start = torch.ones(size, dtype=torch.bool, device=device)
        else:
            kept = tuple(torch.as_tensor(s, device=device) for s in state)
            given = np.zeros(size, bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
            start = torch.as_tensor(np.broadcast_to(given, (size,)).copy(), device=device)
        decision = self.policy.step(obs, kept, start)
        distribution = self.distribution
        if deterministic or self.policy.config.heads == "q":  # Q-values are no distribution to draw from
            actions = distribution.best(decision.logits)
        else:
            actions, _ = distribution.sample(decision.logits, self.generator)
        out = distribution.to_env(actions)
        return (out if batched else out[0]), tuple(s.cpu().numpy() for s in decision.state)

    def _as_batch(self, observation: Any) -> tuple[Any, bool]:
        space = self.observation_space
        if isinstance(space, gym.spaces.Dict):
            parts = {key: np.asarray(observation[key]) for key in space.spaces}
            key, sub = next(iter(space.spaces.items()))
            batched = parts[key].ndim == len(sub.shape or ()) + 1
            return (parts if batched else {k: v[None] for k, v in parts.items()}), batched
        array = np.asarray(observation)
        shape = space.shape or ()
        if array.shape == shape:
            return array[None], False
        if array.shape[1:] == shape:
            return array, True
        raise ValueError(f"observation of shape {array.shape}: this agent expects {shape}, or a batch of them")

    def check_fits(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        """Raises: ValueError if this agent cannot play environments with these spaces."""
        for what, mine, theirs in (
            ("observation", self.observation_space, observation_space),
            ("action", self.action_space, action_space),
        ):
            if space_to_dict(mine) != space_to_dict(theirs):
                raise ValueError(f"the agent's {what} space is {mine}, the environment's is {theirs}: they do not fit")

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
        fitted = Agent(
            policy.to(self.policy.device), observation_space, self.action_space, self.info, folder=self.folder
        )
        fitted.generator.set_state(self.generator.get_state())
        return fitted

    def environment(
        self, env: str | None = None, env_options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Id and options of the environment it was trained on, or of `env`, with `env_options` changed.

        Raises:
            ValueError: no `env` given, and the agent names none or one of a module in its own folder.
        """
        trained_on = self.info.get("env")
        env_id = env or trained_on
        if env_id is None:
            raise ValueError("the agent does not name its environment; give one with env=")
        if env is None:
            refuse_own_module(env_id, self.folder)
        own = (self.info.get("env_options") or {}) if env_id == trained_on else {}
        return env_id, {**own, **(env_options or {})}

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
        agent = Agent(
            policy.to(self.policy.device), self.observation_space, self.action_space, self.info, folder=self.folder
        )
        agent.generator.set_state(self.generator.get_state())
        return agent

    def save(self, folder: str | Path) -> None:
        """Write `agent.json`, a model card (`README.md`) and `agent.safetensors`, the weights last, each atomically.

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
        _write_description(folder, description)
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
    ) -> Agent:
        """Read an agent from its own folder, or from a training run's folder (its best agent, else its last).

        Args:
            folder: of the agent or of the run.
            carry, segments, stop, stop_threshold: see `AgentOverrides`.
            best: from a run's folder, the best agent on validation levels rather than the last.
            observation_space: for grids of another size than in training, see `fit`.

        Raises:
            CheckpointError: the agent is missing, of another version, truncated or altered.
            ValueError: an override that is not possible.
        """
        given = Path(folder)
        folder = find_agent_folder(given, best)
        origin = _whole_folder(given, folder)
        description = read_description(folder)
        try:
            config = PolicyConfig.from_dict(description["policy"])
            spaces = [space_from_dict(description[f"{name}_space"]) for name in ("observation", "action")]
            info = dict(description["info"])
        except (KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder / AGENT_FILE}: not an agent's description ({reason})") from None
        policy = Policy(config, spaces[0], spaces[1])
        tensors, _ = load_tensors(folder / WEIGHTS_FILE)
        try:
            policy.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder}: weights do not fit the description in {AGENT_FILE} ({reason})") from None
        overrides = AgentOverrides(carry, segments, stop, stop_threshold)
        agent = cls(policy, spaces[0], spaces[1], info, folder=origin).changed(overrides)
        return agent if observation_space is None else agent.fit(observation_space)


def read_description(folder: Path) -> dict[str, Any]:
    """The content of `agent.json` in an agent's own folder.

    Raises:
        CheckpointError: there is no agent's description, or it is of another version.
    """
    try:
        description = json.loads((folder / AGENT_FILE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder / AGENT_FILE}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / AGENT_FILE}: not valid JSON ({error})") from None
    version = description.get("agent_version") if isinstance(description, dict) else None
    if version != AGENT_VERSION:
        raise CheckpointError(f"{folder}: agent version {version}, expected {AGENT_VERSION}")
    return description


def add_facts(folder: Path, **facts: Any) -> None:
    """Add to the metadata of a saved agent (`Agent.info`), in its `agent.json` and, if unedited, its card.

    Args:
        folder: of the agent itself, not of a run.
        facts: JSON-able; `card.write_card` lists those it shows.

    Raises:
        CheckpointError: no agent's description there.
    """
    description = read_description(folder)
    _write_description(folder, {**description, "info": {**description["info"], **facts}})


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    text = json.dumps(description, indent=2) + "\n"
    renew = _may_write_card(folder)
    write_atomically(folder / AGENT_FILE, text.encode())
    if renew:  # from the written file, so that the same page can be reproduced from it
        write_atomically(folder / CARD_FILE, write_card(json.loads(text)).encode())


def _may_write_card(folder: Path) -> bool:
    """Whether there is no page yet, or the unedited one that the description beside it gives."""
    card = folder / CARD_FILE
    if not card.exists():
        return True
    try:
        return card.read_bytes() == write_card(read_description(folder)).encode()
    except (CheckpointError, KeyError, TypeError, AttributeError):  # the description is missing or damaged
        return False


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


def _without_size(space: dict[str, Any]) -> dict[str, Any]:
    """A space's description (`space_to_dict`) with the rows and columns of grids left out."""
    if space["type"] == "Dict":
        return {**space, "spaces": {key: _without_size(sub) for key, sub in space["spaces"].items()}}
    is_grid = space["type"] == "Box" and len(space["shape"]) >= 2 and not isinstance(space["high"], list)
    return {**space, "shape": ["rows", "cols", *space["shape"][2:]]} if is_grid else space


def find_agent_folder(folder: Path, best: bool = True) -> Path:
    """`folder` itself if it holds an agent, else the best or last agent of the run it holds.

    Raises:
        CheckpointError: no agent there.
    """
    order = ("best", "last") if best else ("last", "best")
    for candidate in (folder, *(folder / "agents" / name for name in order)):
        if (candidate / AGENT_FILE).is_file():
            return candidate
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a run or of an agent")
    raise CheckpointError(f"{folder}: no agent in it ({AGENT_FILE} missing); give the folder of a run or of an agent")


def _whole_folder(given: Path, found: Path) -> Path:
    """All that came with the agent in `found`, absolute: what the user gave, or the run in which that lies."""
    folder, own = given.resolve(), found.resolve()
    if folder != own:
        return folder
    # Without a run's own file `agents` is a name like any other: ~/agents/mine is no reason to mistrust all of ~.
    run = folder.parents[1] if folder.parent.name == "agents" else None
    return folder if run is None or not (run / RUN_FILE).is_file() else run
