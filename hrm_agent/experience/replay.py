"""A ring buffer of the last T steps of N environments, and the sequences that training samples from it.

The carried state is stored at every `stride`-th step only: a full latent grid per frame would not fit in memory. A
sequence begins at such a step, and its first steps (the burn-in) rebuild the state with the current weights (R2D2,
Kapturowski et al. 2019). Environments run in Gymnasium's SAME_STEP autoreset mode: the observation after an episode's
end belongs to the next episode, and final observations are stored separately.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from hrm_agent.experience.rollout import allocate
from hrm_agent.experience.saved import ReplayMetadata, check_observations
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import check_range, check_tensor, converted

PRIORITY_ETA = 0.9  # share of the maximum in a sequence's priority, the rest is the mean (R2D2)
PRIORITY_FLOOR = 1e-6  # a sequence without error can still be sampled (Schaul et al. 2016, arXiv 1511.05952)


class Sequences(NamedTuple):
    """B sequences of S = burn_in + train + n_step slots, each within one episode; tensors are `[S, B, ...]`.

    Slots before an episode's first step repeat its first observation, with `episode_start` true; slots after its last
    step repeat its final observation. Actions and rewards of such slots are 0.
    """

    obs: Observation
    actions: Tensor  # int64
    rewards: Tensor
    episode_start: Tensor  # bool; true at the episode's first step and in slots before it
    terminated: Tensor  # bool; the episode terminated with this step: no bootstrap
    ended: Tensor  # bool; the last step of the episode, terminated or truncated: the next slot is its final observation
    mask: Tensor  # bool [train, B]; the steps to train on, from slot burn_in on
    state: PolicyState  # tensors [B, ...]; carried state before the first slot
    next_state: PolicyState | None  # before slot burn_in + train; None where train is no multiple of the stride
    drawn: Tensor  # int64 [B] on the CPU, indices of the sequences, for `Replay.update_priorities`
    weights: Tensor  # float [B]; importance weights, at most 1

    def columns(self, part: slice) -> Sequences:
        """Some of the B sequences."""
        return Sequences(*trees.columns(self[:-4], part), *trees.rows(self[-4:], part))

    def to(self, device: torch.device | str) -> Sequences:
        moved: Sequences = trees.to(self, device)
        return moved._replace(drawn=self.drawn)


class Replay:
    """A ring buffer of the last steps of all environments.

    Args:
        capacity_frames: frames to keep; rounded down to whole steps of all environments, a multiple of `stride`.
        num_envs: N.
        space: of one environment's observations.
        state: a carried state of batch N, for shapes; may be empty.
        stride: steps between stored states; sequences begin at these.
        device: of the buffers.

    Raises:
        ValueError: no room for two steps, or for one stride.
    """

    def __init__(
        self,
        capacity_frames: int,
        num_envs: int,
        space: gym.Space,
        state: PolicyState,
        stride: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if stride < 1 or num_envs < 1:
            raise ValueError(f"replay of num_envs={num_envs}, stride={stride}: expected 1 or more of each")
        capacity = capacity_frames // num_envs // stride * stride
        if capacity < 2:
            raise ValueError(
                f"capacity={capacity_frames} frames hold {capacity} steps of {num_envs} environments in strides of "
                f"{stride}: expected 2 or more; raise the capacity"
            )
        self.capacity, self.num_envs, self.stride = capacity, num_envs, stride
        self.device, self.space = torch.device(device), space
        shape = (capacity, num_envs)
        self.obs = allocate(space, shape, device)
        self.actions = torch.zeros(shape, dtype=torch.int64, device=device)
        self.rewards = torch.zeros(shape, device=device)
        self.flags = {
            name: torch.zeros(shape, dtype=torch.bool, device=device)
            for name in ("episode_start", "terminated", "truncated", "cut")
        }
        self.states = trees.zeros(capacity // stride, tuple(state), device)
        self.priorities = torch.zeros(capacity // stride, num_envs)
        self.max_priority = 1.0
        self.final = FinalObservations(space, shape, device)
        self.added = 0  # steps ever added; step t lies in slot t % capacity
        self.whole = True  # the first step began every episode

    @property
    def size(self) -> int:
        """Bytes of all buffers. The buffer of final observations grows where very many episodes end."""
        stores = [store for store, _ in self._stores(self.capacity).values()]
        return sum(store.nbytes for store in (*stores, *trees.leaves(self.final.store)))

    @property
    def oldest(self) -> int:
        """The first step that is still stored."""
        return max(0, self.added - self.capacity)

    @property
    def frames(self) -> int:
        """Frames stored."""
        return (self.added - self.oldest) * self.num_envs

    def add(
        self,
        obs: Observation,
        state: PolicyState,
        episode_start: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        final_obs_rows: Tensor,
        final_obs: Observation | None,
    ) -> None:
        """One step of all environments.

        Args:
            obs: `[N, ...]`, observations before the step.
            state: carried state before the step; used at every `stride`-th step only.
            episode_start: bool `[N]`, `obs` begins an episode.
            actions, rewards: int64 and float `[N]`.
            terminated, truncated: bool `[N]`, the step ended the episode.
            final_obs_rows: bool `[N]` or int64 `[M]`, the environments whose episode ended.
            final_obs: `[M, ...]`, their final observations; None where there are none.

        Raises:
            ValueError: `final_obs_rows` are not the episodes that ended.
        """
        slot = self.added % self.capacity
        ended = (terminated | truncated).to(self.device)
        rows = final_obs_rows.nonzero().squeeze(-1) if final_obs_rows.dtype == torch.bool else final_obs_rows
        rows = rows.to(self.device)
        given = len(next(trees.leaves(final_obs), ()))
        if given != rows.numel() or not torch.equal(rows.sort().values, ended.nonzero().squeeze(-1)):
            raise ValueError(
                f"final observations: {given} given for final_obs_rows={rows.tolist()}, expected one for each episode "
                f"that ended, {ended.nonzero().squeeze(-1).tolist()}; give them all"
            )
        self._mark_cut(episode_start.to(self.device))
        self.final.forget(slot)
        self.final.add(slot, rows, final_obs)
        trees.set_rows(self.obs, slot, obs)
        self.actions[slot], self.rewards[slot] = actions, rewards
        for name, flag in (("episode_start", episode_start), ("terminated", terminated), ("truncated", truncated)):
            self.flags[name][slot] = flag
        self.flags["cut"][slot] = False
        if slot % self.stride == 0:
            trees.set_rows(self.states, slot // self.stride, state)
            self.priorities[slot // self.stride] = self.max_priority
        self.added += 1

    def _mark_cut(self, episode_start: Tensor) -> None:
        """Handle episodes that break off without an end, where a run was resumed with an environment without state.

        The outcome of the last step is unknown, so it is not trained on.
        """
        if self.added == 0:
            self.whole = bool(episode_start.all())
            return
        last = (self.added - 1) % self.capacity
        self.flags["cut"][last] = episode_start & ~self.flags["terminated"][last] & ~self.flags["truncated"][last]

    def starts(self, burn_in: int, train: int, n_step: int) -> range:
        """The steps that may be a sequence's first trained one: every slot and the state before the first are stored.

        Raises:
            ValueError: the sequence does not fit into the ring, or its burn-in into the stride.
        """
        length = burn_in + train + n_step
        if burn_in % self.stride:
            raise ValueError(
                f"burn_in={burn_in} is no multiple of stride={self.stride}: no state is stored there; "
                "change one of them"
            )
        if self.capacity < length + self.stride - 1:
            raise ValueError(
                f"capacity of {self.capacity} steps: expected {length + self.stride - 1} or more for sequences of "
                f"burn_in={burn_in} + train={train} + n_step={n_step} steps; raise the capacity"
            )
        # While the ring holds the run's first step, it holds the first step of every episode.
        first = 0 if self.oldest == 0 and self.whole else self.oldest + burn_in
        first += -first % self.stride
        return range(first, max(first, self.added - train - n_step + 1), self.stride)

    def sample(
        self,
        batch: int,
        burn_in: int,
        train: int,
        n_step: int,
        generator: torch.Generator,
        alpha: float = 0.0,
        beta: float = 0.0,
    ) -> Sequences:
        """Draw `batch` sequences with replacement: uniformly, or with probability proportional to priority^alpha.

        Args:
            burn_in, train, n_step: slots to rebuild the state, to train on, and to bootstrap from.
            generator: of the CPU.
            alpha: 0 draws uniformly.
            beta: exponent of the importance weights (N * P)^-beta, which are divided by the batch's largest.

        Raises:
            ValueError: lengths that do not fit the ring, or no complete sequence yet.
        """
        starts = self.starts(burn_in, train, n_step)
        if not starts:
            raise ValueError(
                f"replay of {self.added} steps: expected {train + n_step} or more for a sequence; collect more first"
            )
        weights = torch.ones(batch)
        if alpha == 0:
            drawn = torch.randint(len(starts) * self.num_envs, (batch,), generator=generator)
        else:
            drawn, weights = self._draw_by_priority(starts, batch, generator, alpha, beta)
        steps = starts.start + self.stride * (drawn // self.num_envs)
        return self._cut_out(steps, drawn % self.num_envs, burn_in, train, n_step, weights)

    def _draw_by_priority(
        self, starts: range, batch: int, generator: torch.Generator, alpha: float, beta: float
    ) -> tuple[Tensor, Tensor]:
        rows = torch.arange(starts.start, starts.stop, starts.step) % self.capacity // self.stride
        # Cumulative sums: torch.multinomial ends at 2^24 categories.
        sums = self.priorities[rows].flatten().double().pow(alpha).cumsum(0)
        points = torch.rand(batch, dtype=torch.float64, generator=generator) * sums[-1]
        drawn = torch.searchsorted(sums, points, right=True).clamp_(max=sums.numel() - 1)
        probability = torch.diff(sums, prepend=sums.new_zeros(1))[drawn] / sums[-1]
        weights = (probability * sums.numel()).pow(-beta)
        return drawn, (weights / weights.max()).float()

    def _cut_out(
        self, steps: Tensor, envs: Tensor, burn_in: int, train: int, n_step: int, weights: Tensor
    ) -> Sequences:
        """Sequences whose first trained steps are `steps` (int64 `[B]`) of `envs` (int64 `[B]`)."""
        drawn = steps * self.num_envs + envs
        steps, envs = steps.to(self.device), envs.to(self.device)
        begin = steps - burn_in
        slots = torch.arange(burn_in + train + n_step, device=self.device).unsqueeze(1)  # [S, 1]
        where = self._slot_of(begin + slots)
        found, first = self._first_step(where, envs, burn_in)
        final, known = self._final_obs(where, envs, burn_in)
        where = self._slot_of(begin + torch.maximum(torch.minimum(slots, final), first))
        obs = trees.rows(self.obs, (where, envs))
        self._write_final(obs, self._slot_of(begin + final - 1), envs, (slots >= final) & known)
        real = (slots >= first) & (slots < final)
        return Sequences(
            obs,
            self.actions[where, envs] * real,
            torch.where(real, self.rewards[where, envs], 0.0),
            found & (slots <= first),
            self.flags["terminated"][where, envs] & real,
            slots == final - 1,
            (slots < final)[burn_in : burn_in + train],
            self._state_before(begin, envs),
            None if train % self.stride else self._state_before(steps + train, envs),
            drawn,
            weights.to(self.device),
        )

    def _slot_of(self, steps: Tensor) -> Tensor:
        return steps.clamp(min=self.oldest) % self.capacity

    def _state_before(self, steps: Tensor, envs: Tensor) -> PolicyState:
        kept: PolicyState = trees.rows(self.states, (self._slot_of(steps) // self.stride, envs))
        return kept

    def _first_step(self, where: Tensor, envs: Tensor, burn_in: int) -> tuple[Tensor, Tensor]:
        """Whether the episode of slot `burn_in` begins in slots 0 ... burn_in, bool `[B]`, and in which, else 0."""
        starts = self.flags["episode_start"][where[: burn_in + 1], envs]
        slots = torch.arange(burn_in + 1, device=self.device).unsqueeze(1)
        last = torch.where(starts, slots, -1).amax(0)
        return last >= 0, last.clamp(min=0)

    def _final_obs(self, where: Tensor, envs: Tensor, burn_in: int) -> tuple[Tensor, Tensor]:
        """Slot of the episode's final observation (above S: none), int64 `[B]`, and whether it was stored separately.

        An episode that breaks off ends one step early: the observation of its last step serves as the final one.
        """
        length = where.shape[0]
        ended = self.flags["terminated"][where, envs] | self.flags["truncated"][where, envs]
        stops = ended | self.flags["cut"][where, envs]
        stops[:burn_in] = False
        slots = torch.arange(length, device=self.device).unsqueeze(1)
        last = torch.where(stops, slots, length + 1).amin(0)
        known = (last < length) & ended.gather(0, last.clamp(max=length - 1).unsqueeze(0)).squeeze(0)
        return last + known, known

    def _write_final(self, obs: Observation, last: Tensor, envs: Tensor, where: Tensor) -> None:
        """Write into `obs` `[S, B, ...]` the final observations of the episodes that end in ring slots `last`."""
        slots, rows = where.nonzero(as_tuple=True)
        trees.set_rows(obs, (slots, rows), self.final.get(last[rows], envs[rows]))

    def update_priorities(self, drawn: Tensor, errors: Tensor, mask: Tensor) -> None:
        """Set the priorities of sampled sequences: 0.9 * the largest |TD error| of each + 0.1 * its mean (R2D2).

        Args:
            drawn: int64 `[B]`, see `Sequences`; those overwritten since are ignored.
            errors: float `[train, B]`, TD errors.
            mask: bool `[train, B]`, the steps that count; a sequence without any gets the lowest priority.
        """
        errors, mask = errors.abs().cpu(), mask.cpu()
        mean = (errors * mask).sum(0) / mask.sum(0).clamp(min=1)
        priority = PRIORITY_ETA * (errors * mask).amax(0) + (1 - PRIORITY_ETA) * mean + PRIORITY_FLOOR
        steps, envs = drawn // self.num_envs, drawn % self.num_envs
        stored = steps >= self.oldest
        self.priorities[(steps % self.capacity // self.stride)[stored], envs[stored]] = priority[stored]
        self.max_priority = max(self.max_priority, float(priority.max()))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, views of the filled part of the ring; see also `metadata`."""
        filled = {name: store[:length] for name, (store, length) in self._stores(self.added).items()}
        return {**filled, **self.final.tensors()}

    def metadata(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "whole": self.whole,
            "max_priority": self.max_priority,
            "final_ids": [self.final.oldest, self.final.following],
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`; later samples and additions are the same.

        Raises:
            ValueError: they belong to a replay of another shape, or are none that a run can have saved; then nothing
                has changed.
        """
        saved = self.check(tensors, metadata)
        stores = self._stores(saved.added)
        for store, length in self._stores(self.added).values():
            store[:length] = 0  # clear old contents; the pages of a fresh ring stay unallocated
        for name, (store, length) in stores.items():
            store[:length] = tensors[name]
        self.added, self.whole, self.max_priority = saved.added, saved.whole, saved.max_priority
        ended = self.flags["terminated"] | self.flags["truncated"]
        self.final.restore(tensors, saved.final_ids, ended.sum(1).tolist())

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> ReplayMetadata:
        """Whether `restore` would accept them; changes nothing.

        Raises:
            ValueError: see `restore`.
        """
        saved = converted("replay", metadata, ReplayMetadata)
        for name, (store, length) in self._stores(saved.added).items():
            if name not in tensors:
                raise ValueError(f"replay {name} is missing")
            check_tensor(f"replay {name}", tensors[name], store, length)
        steps = min(saved.added, self.capacity)
        seen = {name: tensors[name] for name in trees.flatten("obs", self.obs)}
        check_observations("replay", seen, self.obs, self.space, steps)
        check_range("replay actions", tensors["actions"], 0, 2**31)
        check_range("replay priorities", tensors["priorities"], PRIORITY_FLOOR / 2, saved.max_priority)
        ended = tensors["terminated"] | tensors["truncated"]
        if bool((tensors["cut"] & ended).any()):
            raise ValueError("replay cut: an episode that ended cannot have broken off")
        self.final.check(tensors, saved.final_ids, tensors["final_ids"][ended])
        return saved

    def _stores(self, added: int) -> dict[str, tuple[Tensor, int]]:
        """Every buffer, and its filled length after this many steps."""
        steps = min(added, self.capacity)
        rows = -(-steps // self.stride)
        by_step = {
            **trees.flatten("obs", self.obs), "actions": self.actions, "rewards": self.rewards, **self.flags,
            "final_ids": self.final.ids,
        }  # fmt: skip
        by_row = {**trees.flatten("state", self.states), "priorities": self.priorities}
        return {**{n: (s, steps) for n, s in by_step.items()}, **{n: (s, rows) for n, s in by_row.items()}}


def replay_size(capacity_frames: int, num_envs: int, space: gym.Space, state: PolicyState, stride: int) -> int:
    """`Replay.size` of a replay with these arguments, in bytes, without the memory for it."""
    small = Replay(2 * stride * num_envs, num_envs, space, state, stride, "meta")
    apart = sum(store.nbytes for store in trees.leaves(small.final.store))
    return apart + (small.size - apart) // 2 * (capacity_frames // num_envs // stride)


class FinalObservations:
    """The final observations of the episodes that end in the ring, in a ring of their own that grows as needed.

    They are few; storing one for every step would double the memory. The oldest are dropped first.
    """

    def __init__(self, space: gym.Space, shape: tuple[int, int], device: torch.device | str, room: int = 64) -> None:
        self.space, self.device, self.room = space, device, room
        self.ids = torch.zeros(shape, dtype=torch.int64, device=device)  # of the final observation at an end
        self.counts = [0] * shape[0]  # ends in each slot of the replay
        self.oldest, self.following = 0, 0  # ids alive: oldest <= id < following; id i lies at i % room
        self.store = allocate(space, (room,), device)

    def forget(self, slot: int) -> None:
        """Drop the final observations of `slot`, which will be overwritten; slots come in the order of adding."""
        self.oldest += self.counts[slot]
        self.counts[slot] = 0

    def add(self, slot: int, envs: Tensor, obs: Observation | None) -> None:
        """Add the final observations `[M, ...]` of the environments `envs` (int64 `[M]`) in `slot`."""
        if obs is None or envs.numel() == 0:
            return
        ids = torch.arange(self.following, self.following + envs.numel(), device=self.device)
        if self.following + envs.numel() - self.oldest > self.room:
            self._grow(self.following + envs.numel() - self.oldest)
        trees.set_rows(self.store, ids % self.room, obs)
        self.ids[slot, envs] = ids
        self.counts[slot] = envs.numel()
        self.following += envs.numel()

    def get(self, slots: Tensor, envs: Tensor) -> Observation:
        """Final observations `[M, ...]` of the episodes of `envs` that ended in `slots`, both int64 `[M]`."""
        kept: Observation = trees.rows(self.store, self.ids[slots, envs] % self.room)
        return kept

    def _alive(self) -> Tensor:
        return torch.arange(self.oldest, self.following, device=self.device)

    def _grow(self, needed: int) -> None:
        alive, room, kept = self._alive(), max(needed, 2 * self.room), self.store
        self.store = allocate(self.space, (room,), self.device)
        trees.set_rows(self.store, alive % room, trees.rows(kept, alive % self.room))
        self.room = room

    def tensors(self) -> dict[str, Tensor]:
        return trees.flatten("final_obs", trees.rows(self.store, self._alive() % self.room))

    def check(self, tensors: dict[str, Tensor], ids: tuple[int, int], used: Tensor) -> None:
        """Check what `restore` will be given.

        Args:
            ids: the oldest one alive, and the one that follows.
            used: int64 `[M]`, those of the episodes that end in the ring.

        Raises:
            ValueError: they are not one for each end, or observations of another number, structure, dtype or value.
        """
        count = len(used)
        if ids[1] - ids[0] != count or not torch.equal(used.sort().values, torch.arange(ids[0], ids[1])):
            raise ValueError(f"replay final_ids {list(ids)}: expected one final observation for each of {count} ends")
        check_observations("replay final", _renamed(tensors), self.store, self.space, count)

    def restore(self, tensors: dict[str, Tensor], ids: tuple[int, int], counts: list[int]) -> None:
        self.oldest, self.following, self.counts = ids[0], ids[1], counts
        if self.following - self.oldest > self.room:
            self.room = self.following - self.oldest
            self.store = allocate(self.space, (self.room,), self.device)
        for name, store in trees.flatten("final_obs", self.store).items():
            store[self._alive() % self.room] = tensors[name].to(store)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Final observations by the names of observations."""
    names = {name: name.removeprefix("final_") for name in tensors if name.split("/")[0] == "final_obs"}
    return {to: tensors[name] for name, to in names.items()}
