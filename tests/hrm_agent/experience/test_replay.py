"""The replay: what every slot of a sequence holds, how often sequences are drawn, and exact checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.experience.replay import PRIORITY_FLOOR, Replay, Sequences, replay_size
from hrm_agent.tensors.files import load_tensors, save_tensors

PLAIN = gym.spaces.Box(-1, 10_000, (3,), np.int32)
NAMED = gym.spaces.Dict({"who": PLAIN, "when": gym.spaces.Box(0, 10_000, (), np.int32)})
ENDINGS = ("going on", "terminated", "truncated", "both", "cut")


class Step(NamedTuple):
    """One environment at one step: which episode, how many steps into it, and how the step ended it."""

    episode: int
    age: int
    ending: str


class Stream:
    """N environments whose observations say (environment, episode, steps into it), and what became of each step."""

    def __init__(self, num_envs: int, seed: int, p_end: float, endings: tuple[str, ...] = ENDINGS[1:]) -> None:
        self.num_envs, self.p_end, self.endings = num_envs, p_end, endings
        self.random = np.random.default_rng(seed)
        self.history: list[list[Step]] = []
        self.at = [(0, 0)] * num_envs

    def observe(self, rows: list[tuple[int, int, int]], space: gym.Space) -> Any:
        who = torch.tensor(rows, dtype=torch.int32).view(-1, 3)
        return {"who": who, "when": who[:, 2]} if isinstance(space, gym.spaces.Dict) else who

    def feed(self, replay: Replay, steps: int, space: gym.Space = PLAIN) -> None:
        for _ in range(steps):
            t = len(self.history)
            begins = torch.tensor([age == 0 for _, age in self.at])
            now = [(n, *self.at[n]) for n in range(self.num_envs)]
            endings = [
                str(self.random.choice(self.endings)) if self.random.random() < self.p_end else "going on"
                for _ in range(self.num_envs)
            ]
            self.history.append([Step(*self.at[n], endings[n]) for n in range(self.num_envs)])
            ended = [n for n, ending in enumerate(endings) if ending in ENDINGS[1:4]]
            last = [(n, self.at[n][0], self.at[n][1] + 1) for n in ended]
            envs = torch.arange(self.num_envs)
            replay.add(
                self.observe(now, space),
                (torch.stack([envs, torch.full_like(envs, t)], 1).float(),),
                begins,
                t * self.num_envs + envs,
                (t * self.num_envs + envs).float(),
                torch.tensor([e in ("terminated", "both") for e in endings]),
                torch.tensor([e in ("truncated", "both") for e in endings]),
                torch.tensor(ended, dtype=torch.int64),
                self.observe(last, space) if ended else None,
            )
            self.at = [
                (episode, age + 1) if ending == "going on" else (episode + 1, 0)
                for (episode, age), ending in zip(self.at, endings, strict=True)
            ]


def make(num_envs: int, capacity: int, stride: int, space: gym.Space = PLAIN) -> Replay:
    """A replay of `capacity` steps."""
    return Replay(capacity * num_envs, num_envs, space, (torch.zeros(num_envs, 2),), stride)


def everything(replay: Replay, burn_in: int, train: int, n_step: int) -> tuple[Sequences, list[tuple[int, int]]]:
    """Every sequence that may be drawn, and its first trained step and environment."""
    pairs = [(t, n) for t in replay.starts(burn_in, train, n_step) for n in range(replay.num_envs)]
    steps, envs = (torch.tensor([p[i] for p in pairs], dtype=torch.int64) for i in (0, 1))
    return replay._cut_out(steps, envs, burn_in, train, n_step, torch.ones(len(pairs))), pairs


def check(stream: Stream, batch: Sequences, column: int, t: int, n: int, lengths: tuple[int, int, int]) -> None:
    """Every slot of one sequence against the history, slot by slot."""
    burn_in, train, n_step = lengths
    steps = [row[n] for row in stream.history]
    episode, begin = steps[t].episode, t - burn_in
    first = t - steps[t].age
    last = next((s for s in range(t, len(steps)) if steps[s].ending != "going on"), len(steps))
    if last == len(steps) - 1 and steps[last].ending == "cut":
        last += 1  # nobody knows yet that the episode breaks off here
    cut = last < len(steps) and steps[last].ending == "cut"
    learned = last if cut else last + 1  # the first step that nothing can be learned from
    for slot in range(burn_in + train + n_step):
        s = begin + slot
        age = min(max(s, first), learned) - first
        assert batch.obs[slot, column].tolist() == [n, episode, age]
        real = first <= s < learned
        number = s * stream.num_envs + n if real else 0
        assert batch.actions[slot, column] == number
        assert batch.rewards[slot, column] == number
        assert batch.episode_start[slot, column] == (begin <= first and s <= first)
        assert batch.terminated[slot, column] == (s == last and steps[s].ending in ("terminated", "both"))
        if slot < len(batch.ended) - 1:  # what comes after the last slot is not looked at
            assert batch.ended[slot, column] == (s == learned - 1 and learned <= len(steps))
        if burn_in <= slot < burn_in + train:
            assert batch.mask[slot - burn_in, column] == (s < learned)
    if first < begin:  # elsewhere the policy takes its initial state
        assert batch.state[0][column].tolist() == [n, begin]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_sequence_crosses_an_episode_or_the_write_head(data: st.DataObject) -> None:
    draw = data.draw
    num_envs, stride = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    burn_in = stride * draw(st.integers(0, 2))
    train, n_step = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    least = burn_in + train + n_step + stride - 1
    capacity = -(-draw(st.integers(max(least, 2), least + 20)) // stride) * stride
    replay = make(num_envs, capacity, stride)
    stream = Stream(num_envs, draw(st.integers(0, 999)), draw(st.sampled_from([0.02, 0.2, 0.6, 1.0])))
    stream.feed(replay, draw(st.integers(1, 3 * capacity)))
    batch, pairs = everything(replay, burn_in, train, n_step)
    if replay.added >= capacity:
        assert pairs
    for column, (t, n) in enumerate(pairs):
        assert t % stride == 0
        assert replay.oldest <= t
        assert t - burn_in >= replay.oldest or replay.oldest == 0
        assert t + train + n_step <= replay.added
        check(stream, batch, column, t, n, (burn_in, train, n_step))
        if train % stride == 0:
            assert batch.next_state is not None
            assert batch.next_state[0][column].tolist() == [n, t + train]
        else:
            assert batch.next_state is None


def test_the_starts_are_all_that_are_stored() -> None:
    replay, stream = make(1, 12, 2), Stream(1, 0, 0.3)
    stream.feed(replay, 9)
    assert list(replay.starts(4, 2, 1)) == [0, 2, 4, 6]  # the first steps of a run need no state
    stream.feed(replay, 6)  # steps 3 to 14 remain
    assert list(replay.starts(4, 2, 1)) == [8, 10, 12]
    assert list(replay.starts(0, 2, 1)) == [4, 6, 8, 10, 12]


def test_a_replay_that_begins_in_mid_episode_waits_for_a_stored_state() -> None:
    replay, stream = make(1, 12, 2), Stream(1, 0, 0.0)
    stream.at = [(0, 3)]
    stream.feed(replay, 9)
    assert list(replay.starts(4, 2, 1)) == [4, 6]


def test_sampling_is_uniform_and_reaches_every_start() -> None:
    replay, stream = make(2, 24, 4), Stream(2, 1, 0.2)
    stream.feed(replay, 31)
    starts = replay.starts(4, 4, 2)
    possible = {t * 2 + n for t in starts for n in range(2)}
    draws = 6000
    batch = replay.sample(draws, 4, 4, 2, torch.Generator().manual_seed(0))
    numbers, counts = batch.drawn.unique(return_counts=True)
    assert set(numbers.tolist()) == possible
    expected = draws / len(possible)
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert torch.equal(batch.weights, torch.ones(draws))


def test_draws_follow_the_priorities_and_their_weights_undo_it() -> None:
    replay, stream = make(2, 24, 4), Stream(2, 1, 0.2)
    stream.feed(replay, 31)
    batch, pairs = everything(replay, 4, 4, 2)
    errors = torch.arange(1.0, 1 + len(pairs)).expand(4, -1)
    replay.update_priorities(batch.drawn, errors, torch.ones_like(errors, dtype=torch.bool))
    alpha, draws = 0.7, 20_000
    sample = replay.sample(draws, 4, 4, 2, torch.Generator().manual_seed(0), alpha, beta=0.5)
    share = errors[0] ** alpha / (errors[0] ** alpha).sum()
    counts = (sample.drawn.unsqueeze(1) == batch.drawn).sum(0)
    assert ((counts - draws * share).abs() < 5 * (draws * share).sqrt()).all()
    exact = (len(pairs) * share) ** -0.5
    column = (sample.drawn.unsqueeze(1) == batch.drawn).int().argmax(1)
    torch.testing.assert_close(sample.weights, (exact / exact.max())[column], rtol=1e-4, atol=1e-5)


def test_priorities_mix_the_largest_and_the_mean_error_of_the_steps_that_count() -> None:
    replay, stream = make(2, 8, 2), Stream(2, 1, 0.0)
    stream.feed(replay, 11)  # steps 3 to 10 remain
    drawn = torch.tensor([4 * 2 + 0, 8 * 2 + 1, 2 * 2 + 0])
    errors = torch.tensor([[-4.0, 1.0, 50.0], [2.0, 70.0, 50.0]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    replay.update_priorities(drawn, errors, mask)
    assert replay.priorities[4 % 8 // 2, 0].item() == pytest.approx(0.9 * 4 + 0.1 * 3 + PRIORITY_FLOOR)
    assert replay.priorities[8 % 8 // 2, 1].item() == pytest.approx(1 + PRIORITY_FLOOR)
    assert replay.priorities[1].tolist() == [1, 1]  # step 2 was overwritten by step 10
    stream.feed(replay, 2)  # step 12 takes the place of step 4
    assert replay.priorities[4 % 8 // 2].tolist() == [replay.max_priority] * 2


def test_a_dictionary_of_observations_is_one_of_tensors() -> None:
    batches = []
    for space in (PLAIN, NAMED):
        replay, stream = make(2, 24, 4, space), Stream(2, 3, 0.3)
        stream.feed(replay, 40, space)
        batches.append(replay.sample(64, 4, 4, 2, torch.Generator().manual_seed(0)))
    plain, named = batches
    assert torch.equal(named.obs["who"], plain.obs)
    assert torch.equal(named.obs["when"], plain.obs[..., 2])
    part = named.columns(slice(3, 9))
    assert torch.equal(part.obs["who"], plain.obs[:, 3:9])
    assert torch.equal(part.state[0], plain.state[0][3:9])
    assert torch.equal(part.drawn, plain.drawn[3:9])


@pytest.mark.parametrize("used", [0, 3, 45])
@pytest.mark.parametrize("steps", [1, 7, 16, 45])
def test_a_restored_replay_goes_on_as_if_nothing_had_happened(steps: int, used: int, tmp_path: Path) -> None:
    """Whatever the replay held that it is restored into."""
    replay, stream = make(2, 16, 4), Stream(2, 5, 0.9)
    stream.feed(replay, steps)
    replay.update_priorities(torch.tensor([0]), torch.tensor([[9.0]]), torch.tensor([[True]]))
    save_tensors(tmp_path / "replay.safetensors", replay.tensors(), replay.metadata())
    filled = min(steps, 16)
    assert all(t.shape[0] == filled for name, t in replay.tensors().items() if name in ("obs", "rewards", "cut"))
    fresh, other = make(2, 16, 4), make(2, 16, 4)
    Stream(2, 8, 0.9).feed(other, used)
    for restored in (fresh, other):
        restored.restore(*load_tensors(tmp_path / "replay.safetensors"))
    for name, (store, _) in other._stores(0).items():
        assert torch.equal(store, fresh._stores(0)[name][0]), name
    assert other.final.counts == fresh.final.counts
    twin = Stream(2, 0, 0.9)
    twin.history, twin.at = list(stream.history), list(stream.at)
    for more in (0, 5, 20):
        stream.random, twin.random = np.random.default_rng(more), np.random.default_rng(more)
        stream.feed(replay, more)
        twin.feed(other, more)
        if not replay.starts(4, 2, 1):
            continue
        mine, theirs = (r.sample(64, 4, 2, 1, torch.Generator().manual_seed(1), 0.9, 0.6) for r in (replay, other))
        for a, b in zip(flat(mine), flat(theirs), strict=True):
            assert torch.equal(a, b)
    assert replay.metadata() == other.metadata()


def flat(batch: Sequences) -> list[Tensor]:
    return [x for field in batch for x in (field if isinstance(field, tuple) else (field,)) if isinstance(x, Tensor)]


def test_final_observations_need_room_for_the_living_only() -> None:
    replay, stream = make(4, 8, 4), Stream(4, 0, 0.5, ("terminated", "truncated"))
    stream.feed(replay, 500)
    assert replay.final.following > 500
    assert replay.final.room == 64
    assert replay.final.following - replay.final.oldest <= 32
    crowded, busy = make(32, 12, 4), Stream(32, 0, 1.0, ("truncated",))
    busy.feed(crowded, 20)
    assert crowded.final.room >= 12 * 32
    batch, pairs = everything(crowded, 4, 1, 1)
    for column, (t, n) in enumerate(pairs):
        check(busy, batch, column, t, n, (4, 1, 1))


def test_its_size_is_that_of_what_it_stores() -> None:
    """Counted by hand: 3 numbers seen, action, reward, 4 flags, the number of a final observation; then by row."""
    by_step = 3 * 4 + 8 + 4 + 4 * 1 + 8
    by_row = 2 * 4 + 4
    expected = 2 * (16 * by_step + 4 * by_row) + 64 * 3 * 4
    replay = make(2, 16, 4)
    assert replay.size == expected
    assert replay_size(33, 2, PLAIN, replay_state := (torch.zeros(2, 2),), 4) == expected
    assert replay_size(32 * 10**12, 2, PLAIN, replay_state, 4) == (expected - 768) * 10**12 + 768  # takes no memory
    Stream(2, 0, 0.5).feed(replay, 40)
    assert replay.size == expected


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"capacity=3 frames hold 0 steps of 2 environments"):
        Replay(3, 2, PLAIN, (), 2)
    with pytest.raises(ValueError, match="stride=0: expected 1 or more"):
        Replay(64, 2, PLAIN, (), 0)
    replay, stream = make(2, 8, 4), Stream(2, 0, 0.0)
    with pytest.raises(ValueError, match="burn_in=2 is no multiple of stride=4"):
        replay.sample(1, 2, 1, 1, torch.Generator())
    with pytest.raises(ValueError, match=r"capacity of 8 steps: expected 13 or more"):
        replay.sample(1, 4, 5, 1, torch.Generator())
    stream.feed(replay, 1)
    with pytest.raises(ValueError, match=r"replay of 1 steps: expected 2 or more"):
        replay.sample(1, 0, 1, 1, torch.Generator())
    no, yes = torch.tensor([False, False]), torch.tensor([False, True])
    obs, state, zero = stream.observe([(0, 0, 1), (1, 0, 1)], PLAIN), (torch.zeros(2, 2),), torch.zeros(2)
    for rows, final in ((no, None), (yes, None), (~yes, obs[:1]), (yes, obs)):
        with pytest.raises(ValueError, match=r"expected one for each episode that ended, \[1\]"):
            replay.add(obs, state, no, zero.long(), zero, yes, no, rows, final)
    assert replay.added == 1
    before = {name: t.clone() for name, t in replay.tensors().items()}
    with pytest.raises(ValueError, match=r"replay obs is int32\[\d, 2, 3\], expected int32\[3, 2, 3\]"):
        replay.restore(before, {**replay.metadata(), "added": 3})
    assert all(torch.equal(t, before[name]) for name, t in replay.tensors().items())  # left as it was
    with pytest.raises(ValueError, match=r"replay obs is int32\[\d, 2, 3\], expected int32\[3, 2, 3\]"):
        make(2, 16, 4).restore(replay.tensors(), {**replay.metadata(), "added": 3})
