"""Encoders: nothing of an observation is lost, everything lands on its own token."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.policies import encoders
from hrm_agent.policies.encoders import EncoderConfig, GridEncoder, VectorEncoder, build_encoder, find_grid

SIZE = 16
IDS = 6


def grid_space(height: int, width: int, *channels: int) -> gym.spaces.Box:
    return gym.spaces.Box(0, IDS - 1, (height, width, *channels), np.uint8)


def changed_tokens(before: Tensor, after: Tensor) -> list[int]:
    return (before != after).any(-1).nonzero().flatten().tolist()


@given(
    inner=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    crop=st.integers(0, 2),
    patch=st.integers(1, 3),
    channels=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_every_cell_shows_in_its_own_token_and_the_ring_in_none(
    inner: tuple[int, int], crop: int, patch: int, channels: int, seed: int
) -> None:
    height, width = inner[0] + 2 * crop, inner[1] + 2 * crop
    shape = (height, width, channels) if channels else (height, width)
    torch.manual_seed(seed)
    encoder = build_encoder(grid_space(*shape), SIZE, EncoderConfig(crop, patch))
    obs = torch.randint(0, IDS, shape, dtype=torch.uint8)
    tokens = encoder(obs)
    across = -(-inner[1] // patch)
    assert encoder.grid == (-(-inner[0] // patch), across)
    assert tokens.shape == (encoder.length, SIZE)
    for place in np.ndindex(*shape):
        other = obs.clone()
        other[place] = (obs[place] + 1) % IDS
        row, col = place[0] - crop, place[1] - crop
        inside = 0 <= row < inner[0] and 0 <= col < inner[1]
        expected = [row // patch * across + col // patch] if inside else []
        assert changed_tokens(tokens, encoder(other)) == expected


def test_crop_and_patch_lose_nothing_inside_the_ring() -> None:
    """Every content of a patch has a token of its own, so the grid can be read back from the tokens."""
    encoder = build_encoder(grid_space(4, 4), SIZE, EncoderConfig(crop=1, patch_size=2))
    contents = torch.cartesian_prod(*[torch.arange(IDS)] * 4)  # [1296, 4]
    obs = torch.zeros(len(contents), 4, 4, dtype=torch.uint8)
    obs[:, 1:3, 1:3] = contents.view(-1, 2, 2).to(torch.uint8)
    with torch.no_grad():
        distance = torch.cdist(*[encoder(obs).squeeze(1).double()] * 2)
    assert distance.fill_diagonal_(1).min() > 1e-3


def test_leading_dimensions_are_kept() -> None:
    encoder = build_encoder(grid_space(5, 5), SIZE, EncoderConfig(1, 2))
    obs = torch.randint(0, IDS, (3, 2, 5, 5), dtype=torch.uint8)
    tokens = encoder(obs)
    assert tokens.shape == (3, 2, 4, SIZE)
    for t in range(3):
        for b in range(2):
            torch.testing.assert_close(tokens[t, b], encoder(obs[t, b]))


@pytest.mark.parametrize("config", [EncoderConfig(), EncoderConfig(1, 2), EncoderConfig(0, 2, "learned")])
def test_tokens_have_unit_variance(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(grid_space(9, 9), 256, config)
    tokens = encoder(torch.randint(0, IDS, (64, 9, 9), dtype=torch.uint8))
    assert 0.9 < tokens.std().item() < 1.1


def test_learned_positions_tell_equal_cells_apart() -> None:
    obs = torch.ones(1, 4, 4, dtype=torch.uint8)
    plain, learned = (build_encoder(grid_space(4, 4), SIZE, EncoderConfig(positions=p)) for p in ("none", "learned"))
    assert torch.equal(plain(obs), plain(obs)[:, :1].expand(1, 16, SIZE))
    tokens = learned(obs)[0]
    assert torch.pdist(tokens).min() > 0.1
    assert learned.grid == plain.grid
    other = torch.full_like(obs, 2)
    steps = learned(other)[0] - tokens  # the cell's part does not depend on the place
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-5)


def entries() -> dict[str, gym.Space]:
    return {
        "map": grid_space(5, 5),
        "wind": gym.spaces.Box(-1, 1, (3,), np.float32),
        "compass": gym.spaces.Discrete(4, start=1),
        "zone": gym.spaces.MultiDiscrete([2, 3]),
    }


def test_entries_without_a_grid_come_first_in_the_order_of_their_names() -> None:
    encoder = build_encoder(gym.spaces.Dict(entries()), SIZE, EncoderConfig(1, 1))
    obs: dict[str, Tensor] = {
        "map": torch.zeros(5, 5, dtype=torch.uint8),
        "wind": torch.zeros(3),
        "compass": torch.tensor(1),
        "zone": torch.tensor([0, 0]),
    }
    tokens = encoder(obs)
    assert tokens.shape == (1 + 2 + 1 + 9, SIZE)
    changes = {
        "compass": (torch.tensor(4), [0]),
        "wind": (torch.tensor([0.0, 1.0, 0.0]), [1]),
        "zone": (torch.tensor([0, 2]), [3]),
    }
    for key, (value, expected) in changes.items():
        assert changed_tokens(tokens, encoder({**obs, key: value})) == expected
    moved = obs["map"].clone()
    moved[1, 1] = 1
    assert changed_tokens(tokens, encoder({**obs, "map": moved})) == [4]
    found = find_grid(encoder)
    assert found is not None
    assert found[1:] == ("map", 4)


def test_the_order_of_a_dictionary_does_not_matter() -> None:
    spaces = entries()
    torch.manual_seed(0)
    one = build_encoder(gym.spaces.Dict(spaces), SIZE, EncoderConfig())
    other = build_encoder(gym.spaces.Dict(dict(reversed(spaces.items()))), SIZE, EncoderConfig())
    other.load_state_dict(one.state_dict())
    obs = {k: torch.as_tensor(v) for k, v in gym.spaces.Dict(spaces).sample().items()}
    assert torch.equal(one(obs), other(dict(reversed(obs.items()))))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((210, 160, 3), (12, 9)), ((84, 84), (12, 12)), ((4, 84, 84), (12, 12)), ((32, 32, 1), (11, 11))],
)
def test_every_patch_of_a_picture_has_its_own_token(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(gym.spaces.Box(0, 255, shape, np.uint8), SIZE, EncoderConfig())
    assert encoder.grid == grid
    obs = torch.randint(0, 256, shape, dtype=torch.uint8)
    tokens = encoder(obs)
    assert tokens.shape == (grid[0] * grid[1], SIZE)
    sides = shape[1:] if shape[0] == 4 else shape[:2]
    patch = -(-max(sides) // 12)
    random = np.random.default_rng(0)
    for _ in range(20):
        place = tuple(random.integers(0, n) for n in shape)
        row, col = (place[1:] if shape[0] == 4 else place)[:2]
        other = obs.clone()
        other[place] = 255 - other[place] // 2
        if (other != obs).any():
            assert changed_tokens(tokens, encoder(other)) == [row // patch * grid[1] + col // patch]
    batch = torch.stack([obs, obs])[None]
    torch.testing.assert_close(encoder(batch)[0, 1], tokens)


def test_joined_entries_are_one_token_that_still_tells_all_of_them() -> None:
    spaces = entries()
    torch.manual_seed(0)
    apart = build_encoder(gym.spaces.Dict(spaces), SIZE, EncoderConfig())
    joined = build_encoder(gym.spaces.Dict(spaces), SIZE, EncoderConfig(join=True))
    joined.load_state_dict(apart.state_dict())
    assert joined.grid is not None
    cells = joined.grid[0] * joined.grid[1]
    assert joined.length == 1 + cells
    obs = {k: torch.as_tensor(v) for k, v in gym.spaces.Dict(spaces).sample().items()}
    tokens, one = apart(obs), joined(obs)
    assert torch.equal(tokens[-cells:], one[-cells:])
    torch.testing.assert_close(one[0], tokens[:-cells].sum(0) * (apart.length - cells) ** -0.5)


def test_entries_may_have_any_name() -> None:
    names = ("keys", "values", "items", "type", "a.b", "training", "forward")
    space = gym.spaces.Dict({name: gym.spaces.Discrete(3) for name in names})
    encoder = build_encoder(space, SIZE, EncoderConfig())
    tokens = encoder({name: torch.tensor(i % 3) for i, name in enumerate(names)})
    assert tokens.shape == (len(names), SIZE)


def test_a_small_board_of_bytes_is_no_picture() -> None:
    """MiniGrid's 7x7x3 view has a space of bytes 0 to 255, and holds ids."""
    assert isinstance(build_encoder(gym.spaces.Box(0, 255, (7, 7, 3), np.uint8), SIZE, EncoderConfig()), GridEncoder)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    offset=st.floats(-100, 100),
    spread=st.floats(0.01, 100),
)
@settings(max_examples=25)
def test_running_moments_of_a_vector_are_those_of_all_that_was_seen(
    sizes: list[int], offset: float, spread: float
) -> None:
    encoder = build_encoder(gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), SIZE, EncoderConfig())
    assert isinstance(encoder, VectorEncoder)
    random = np.random.default_rng(len(sizes))
    parts = [torch.from_numpy(random.normal(offset, spread, (n, 2, 3))) for n in sizes]
    for part in parts:
        encoder.observe(part)
    seen = torch.cat(parts).flatten(0, 1)
    torch.testing.assert_close(encoder.mean, seen.mean(0))
    torch.testing.assert_close(encoder.variance, seen.var(0, correction=0))


def test_a_vector_is_read_the_same_in_other_units_once_it_has_been_observed() -> None:
    space = gym.spaces.Dict(speed=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), cell=gym.spaces.Discrete(3))
    torch.manual_seed(0)
    one, other = (build_encoder(space, SIZE, EncoderConfig(prefix=1, positions="learned")) for _ in range(2))
    other.load_state_dict(one.state_dict())
    speed, cell = torch.randn(50, 2), torch.zeros(50, dtype=torch.int64)
    one.observe({"speed": speed, "cell": cell})
    other.observe({"speed": 1000 * speed + 7, "cell": cell})
    read = one({"speed": speed, "cell": cell}), other({"speed": 1000 * speed + 7, "cell": cell})
    torch.testing.assert_close(*read, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Box(0, 254, (210, 160, 3), np.uint8), "is not a categorical grid.*wrap the environment"),
        (gym.spaces.Box(0, 1, (2, 3, 8, 8), np.float32), "no encoder for"),
        (gym.spaces.Box(-1, 5, (8, 8), np.int8), "is not a categorical grid"),
        (gym.spaces.Box(0, 300, (8, 8), np.int64), "is not a categorical grid"),
        (gym.spaces.Text(5), "no encoder for"),
        (gym.spaces.MultiBinary(3), "no encoder for"),
        (gym.spaces.Dict(a=grid_space(3, 3), b=grid_space(3, 3)), "2 grids .*stack them"),
        (gym.spaces.Dict(a=gym.spaces.Text(5)), "a: no encoder for"),
    ],
)
def test_spaces_that_have_no_encoder_are_refused(space: gym.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(space, SIZE, EncoderConfig())


def test_options_out_of_range_are_refused() -> None:
    for options, message in (
        ({"crop": -1}, "encoder.crop=-1: expected an integer from 0"),
        ({"patch_size": 0}, "encoder.patch_size=0: expected an integer from 1"),
        ({"positions": "rope"}, "expected none or learned"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing is left of a 4x9 grid"):
        build_encoder(grid_space(4, 9), SIZE, EncoderConfig(crop=2))


@pytest.mark.parametrize("most", [2**24, 50])
def test_gradients_of_embeddings_are_torchs(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """By one product or by several, where the numbers would be too many."""
    monkeypatch.setattr(encoders, "MOST_CHOSEN", most)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 4, (31, 3), generator=generator) + torch.arange(3) * 4
    down = torch.randn(31, 5, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(encoders.sum_of_rows(ids, table), table, down)[0]
    theirs = torch.autograd.grad(torch.nn.functional.embedding_bag(ids, table, mode="sum"), table, down)[0]
    torch.testing.assert_close(ours, theirs)
