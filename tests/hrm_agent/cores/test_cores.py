"""Every core: explicit state, rows that do not see each other, gradients where the config says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.cores import CORES, HRM, TRM, Core, FeedForward, build_core, map_state
from hrm_agent.cores.base import truncated_normal_
from hrm_agent.cores.blocks import MIXINGS, AttentionMixing, OffsetBias, RotaryPositions, swiglu_width
from hrm_agent.cores.norm import rms_norm

GRID = (5, 6)
PREFIX = 2
LENGTH = PREFIX + GRID[0] * GRID[1]
SUDOKU = (4, 4)
SIZE = 8
BATCH = 3

SMALL_BLOCKS: dict[str, Any] = {"num_heads": 2, "inner_size": 12}
TRM_SMALL: dict[str, Any] = {"layers": 1, "H_cycles": 2, "L_cycles": 2, **SMALL_BLOCKS}
HRM_SMALL: dict[str, Any] = {"H_layers": 1, "L_layers": 1, **SMALL_BLOCKS}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"trm-{mixing}": ("trm", {"mixing": mixing, **TRM_SMALL}) for mixing in MIXINGS},
    **{f"hrm-{mixing}": ("hrm", {"mixing": mixing, **HRM_SMALL}) for mixing in MIXINGS},
    "trm-rope2d": ("trm", {"positions": "rope2d", **TRM_SMALL}),
    "feedforward-conv": ("feedforward", {"layers": 2, "mixing": "conv", **SMALL_BLOCKS}),
    "feedforward-attention": ("feedforward", {"layers": 2, **SMALL_BLOCKS}),
    "gru": ("gru", {"memory_size": 7}),
    "gru-flatten": ("gru", {"memory_size": 7, "pooling": "flatten"}),
    "lstm": ("lstm", {"memory_size": 7}),
    "convlstm": ("convlstm", {"layers": 2, "ticks": 2}),
    "drc": ("drc", {"num_layers": 2, "repeats": 2, "features": 16}),
    "vin": ("vin", {"iterations": 4, "q_channels": 6}),
}
RECURRENT = [name for name, (core, _) in VARIANTS.items() if core != "feedforward"]
ONE_VECTOR = ("gru-flatten", "lstm", "drc")  # whose outputs are the same for every token


def make(variant: str, length: int = LENGTH, grid: tuple[int, int] | None = GRID, **more: Any) -> Core:
    torch.manual_seed(0)
    name, options = VARIANTS[variant]
    if variant.endswith("-units") and grid == GRID:
        grid = SUDOKU  # the tokens that are left over are its prefix
    return build_core(name, hidden_size=SIZE, length=length, grid=grid, **{**options, **more})


def tokens(batch: int = BATCH, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_segment_keeps_shapes_types_and_the_given_state(variant: str) -> None:
    core, x = make(variant), tokens()
    state = core.initial_state(BATCH)
    before = map_state(Tensor.clone, state)
    y, after = core(x, state)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert type(after) is type(state)
    assert [t.shape for t in after] == [t.shape for t in state]
    assert all(t.shape[0] == BATCH for t in after)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_kept_on_the_module(variant: str) -> None:
    core, x = make(variant), tokens()
    weights = {name: t.clone() for name, t in core.state_dict().items()}
    first, _ = core(x, core.initial_state(BATCH))
    core(tokens(seed=2), core.initial_state(BATCH))
    again, _ = core(x, core.initial_state(BATCH))
    assert torch.equal(first, again)
    assert all(torch.equal(t, weights[name]) for name, t in core.state_dict().items())


@pytest.mark.parametrize("variant", RECURRENT)
def test_the_state_matters(variant: str) -> None:
    core, x = make(variant), tokens()
    first, state = core(x, core.initial_state(BATCH))
    second, _ = core(x, state)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("variant", [name for name in RECURRENT if name != "vin"])
def test_initial_state_is_fixed_nonzero_and_equal_everywhere(variant: str) -> None:
    core = make(variant)
    parameters = {id(p) for p in core.parameters()}
    for field in core.initial_state(BATCH):
        assert field.abs().max() > 0.1
        assert not field.requires_grad
        # Rows and places share one vector (of each layer); the state may be written to in place.
        places = field.flatten(1, -2) if field.dim() == 3 else field
        assert torch.equal(places, places[:1].expand_as(places))
        if field.dim() == 3:
            assert torch.equal(field, field[:, :1].expand_as(field))
        if field.dim() == 5:
            assert torch.equal(field, field[:, :, :1, :1].expand_as(field))
    assert all(id(buffer) not in parameters for buffer in core.buffers())


def test_feedforward_has_an_empty_state() -> None:
    core = make("feedforward-conv")
    assert isinstance(core, FeedForward)
    assert core.initial_state(BATCH) == ()
    assert len(list(core.initial_state(BATCH))) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_do_not_see_each_other(variant: str) -> None:
    core, x = make(variant), tokens()
    changed = x.clone()
    changed[1] += 1.0
    state = core.initial_state(BATCH)
    y, after = core(x, state)
    y_changed, after_changed = core(changed, state)
    torch.testing.assert_close(y[[0, 2]], y_changed[[0, 2]])
    assert (y[1] - y_changed[1]).abs().max() > 1e-3
    for a, b in zip(after, after_changed, strict=True):
        torch.testing.assert_close(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cycle_gradient", ["last", "all"])
def test_gradient_reaches_every_parameter(variant: str, cycle_gradient: str) -> None:
    more = {"cycle_gradient": cycle_gradient} if VARIANTS[variant][0] in ("hrm", "trm") else {}
    core = make(variant, **more)
    y, _ = core(tokens(), core.initial_state(BATCH))
    (y * tokens(seed=3)).sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ONE_VECTOR])
def test_each_core_learns_a_mapping_of_its_tokens(variant: str) -> None:
    core, x = make(variant), tokens()
    target = (x[:, :, :1] > x[:, :, 1:2]).float()
    head = torch.nn.Linear(SIZE, 1)
    optimizer = torch.optim.Adam([*core.parameters(), *head.parameters()], lr=1e-2)
    first = None
    for _ in range(60):
        y, _ = core(x, core.initial_state(BATCH))
        loss = F.binary_cross_entropy_with_logits(head(y), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
        if loss < 0.6 * first:
            return
    pytest.fail(f"{loss} after 60 steps, {first} before them")


def state_gradients(core: Core) -> list[float]:
    """Largest gradient of a segment's output with respect to each field of its incoming state."""
    state = map_state(lambda t: t.requires_grad_(), core.initial_state(BATCH))
    y, _ = core(tokens(), state)
    gradients = torch.autograd.grad((y * tokens(seed=3)).sum(), list(state), allow_unused=True)
    return [0.0 if g is None else g.abs().max().item() for g in gradients]


@pytest.mark.parametrize("core", ["trm", "hrm"])
@pytest.mark.parametrize("mixing", ["attention", "conv"])
def test_cycle_gradient_decides_whether_the_past_is_reached(core: str, mixing: str) -> None:
    variant = f"{core}-{mixing}"
    for L_cycles in (1, 2):
        cut = state_gradients(make(variant, H_cycles=2, L_cycles=L_cycles, cycle_gradient="last"))
        assert cut == [0.0, 0.0]
    whole = state_gradients(make(variant, H_cycles=2, L_cycles=2, cycle_gradient="all"))
    assert all(g > 1e-6 for g in whole)
    single = state_gradients(make(variant, H_cycles=1, L_cycles=1, cycle_gradient="last"))
    assert all(g > 1e-6 for g in single)


def test_one_outer_cycle_of_trm_is_differentiated_whole_and_of_hrm_in_part() -> None:
    assert all(g > 0 for g in state_gradients(make("trm-conv", H_cycles=1, L_cycles=3)))
    z_H, z_L = state_gradients(make("hrm-conv", H_cycles=1, L_cycles=3))
    assert z_H > 0
    assert z_L == 0  # only the last of three updates of z_L has a gradient


@pytest.mark.parametrize("core", ["trm", "hrm"])
def test_cycle_gradient_does_not_change_the_values(core: str) -> None:
    x = tokens()
    outputs = []
    for cycle_gradient in ("last", "all"):
        model = make(f"{core}-attention", cycle_gradient=cycle_gradient)
        outputs.append(model(x, model.initial_state(BATCH))[0])
    assert torch.equal(outputs[0], outputs[1])


def test_no_gradient_is_recorded_where_the_caller_wants_none() -> None:
    core = make("trm-conv", cycle_gradient="all")
    with torch.no_grad():
        y, state = core(tokens(), core.initial_state(BATCH))
    assert not y.requires_grad
    assert not any(t.requires_grad for t in state)


def test_cycles_are_the_published_recursions() -> None:
    x = tokens()
    trm = make("trm-conv", H_cycles=2, L_cycles=3)
    assert isinstance(trm, TRM)
    z_H, z_L = trm.initial_state(BATCH)
    y, state = trm(x, (z_H, z_L))
    for _ in range(2):
        for _ in range(3):
            z_L = trm.net(z_L + z_H + x)
        z_H = trm.net(z_H + z_L)
    torch.testing.assert_close(state, type(state)(z_H, z_L))
    assert torch.equal(y, state[0])

    hrm = make("hrm-conv", H_cycles=2, L_cycles=3)
    assert isinstance(hrm, HRM)
    z_H, z_L = hrm.initial_state(BATCH)
    _, state = hrm(x, (z_H, z_L))
    for _ in range(2):
        for _ in range(3):
            z_L = hrm.L_net(z_L + z_H + x)
        z_H = hrm.H_net(z_H + z_L)
    torch.testing.assert_close(state, type(state)(z_H, z_L))


TRANSFERABLE = [
    ("trm-conv", {}),
    ("trm-sweep", {}),
    ("hrm-conv", {}),
    ("trm-attention", {}),
    ("trm-rope2d", {}),
    ("trm-attention_conv", {"positions": "none"}),
    ("trm-attention_local", {"positions": "none"}),
    ("convlstm", {}),
    ("gru", {}),
]


@pytest.mark.parametrize(("variant", "more"), TRANSFERABLE)
def test_weights_serve_another_grid(variant: str, more: dict[str, Any]) -> None:
    core = make(variant, **more)
    length = PREFIX + 9 * 7
    larger = make(variant, length=length, grid=(9, 7), **more)
    larger.load_state_dict(core.state_dict())
    y, _ = larger(tokens(length=length), larger.initial_state(BATCH))
    assert y.shape == (BATCH, length, SIZE)


@pytest.mark.parametrize("variant", ["trm-conv", "hrm-conv", "feedforward-conv"])
def test_convolution_moves_with_the_picture(variant: str) -> None:
    rows, cols, update_count = 13, 12, 4
    more = {} if variant.startswith("feed") else {"H_cycles": 1, "L_cycles": 1, "positions": "none"}
    core = make(variant, length=rows * cols, grid=(rows, cols), **more)
    picture = tokens(length=rows * cols).view(BATCH, rows, cols, SIZE)
    moved = picture.roll(shifts=(1, 1), dims=(1, 2))
    state = core.initial_state(BATCH)
    y, y_moved = (core(p.flatten(1, 2), state)[0].view(picture.shape) for p in (picture, moved))
    # Each block sees one cell further, so the border is felt no deeper than the number of blocks.
    inner = slice(update_count + 1, -update_count - 1)
    expected = y.roll(shifts=(1, 1), dims=(1, 2))
    torch.testing.assert_close(y_moved[:, inner, inner], expected[:, inner, inner])
    assert (y_moved - y)[:, inner, inner].abs().max() > 1e-2


def test_convolution_reaches_neighbours_and_the_prefix_only() -> None:
    core = make("feedforward-conv", layers=1)
    x = tokens()
    changed = x.clone()
    changed[:, PREFIX + 2 * GRID[1] + 3] += 1.0
    state = core.initial_state(BATCH)
    moved = (core(x, state)[0] - core(changed, state)[0]).abs().amax(dim=(0, 2)) > 1e-6
    assert moved[:PREFIX].all()
    touched = moved[PREFIX:].view(GRID)
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(touched, expected)


def test_the_prefix_reaches_every_cell_of_the_grid() -> None:
    x = tokens()
    changed = x.clone()
    changed[:, 0] += 1.0
    attention = ("trm-attention", "trm-attention_conv", "trm-attention_local")
    for variant in (*attention, "trm-mlp", "trm-conv", "trm-sweep", "convlstm", "gru"):
        core = make(variant)
        state = core.initial_state(BATCH)
        difference = core(x, state)[0] - core(changed, state)[0]
        assert difference[:, PREFIX:].abs().amax(dim=(0, 2)).min() > 1e-6, variant


def test_convolution_without_a_grid_mixes_every_token_into_all_others() -> None:
    core = build_core("trm", hidden_size=SIZE, length=4, grid=None, mixing="conv", layers=1, num_heads=2)
    x = tokens(length=4)
    changed = x.clone()
    changed[:, 2] += 1.0
    state = core.initial_state(BATCH)
    difference = core(x, state)[0] - core(changed, state)[0]
    assert difference.abs().amax(dim=(0, 2)).min() > 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.floats(1e-4, 1e3), st.integers(0, 10**6))
def test_rms_norm_and_its_gradient_equal_the_definition(size: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(4, 3, size, generator=generator) * scale).requires_grad_()
    weight = torch.randn(4, 3, size, generator=generator)
    exact = x.detach().double().requires_grad_()
    y = rms_norm(x)
    definition = exact / (exact.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y.double(), definition, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    (expected,) = torch.autograd.grad((definition * weight).sum(), exact)
    # The gradient is a difference of numbers as large as the weight over the norm, in which rounding is amplified.
    norm = (exact.detach().square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    terms = weight.double().abs().amax(dim=-1, keepdim=True) * size / norm
    assert ((gradient - expected).abs() <= 1e-6 * terms + 1e-5 * expected.abs()).all()


@torch.no_grad()
def test_local_attention_adds_its_bias_by_the_clipped_offset_of_two_cells() -> None:
    rows, cols, prefix, heads = 5, 6, 2, 2
    length = prefix + rows * cols
    bias = OffsetBias(heads, length, (rows, cols))
    assert bias.table[1].max() == 0
    bias.table.normal_()
    slow = torch.empty(heads, length, length)
    for head, a, b in itertools.product(range(heads), range(length), range(length)):
        if min(a, b) < prefix:
            slow[head, a, b] = bias.table[head, -1]
            continue
        (ra, ca), (rb, cb) = divmod(a - prefix, cols), divmod(b - prefix, cols)
        down, right = (max(-3, min(3, x)) + 3 for x in (rb - ra, cb - ca))
        slow[head, a, b] = bias.table[head, down * 7 + right]
    assert torch.equal(bias(), slow)
    plain = AttentionMixing(SIZE, heads)
    local = AttentionMixing(SIZE, heads, bias)
    local.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(BATCH, length, SIZE)
    query, key, value = (t.view(BATCH, length, heads, -1).transpose(1, 2) for t in plain.qkv(x).chunk(3, dim=-1))
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + slow).softmax(-1)
    expected = rms_norm(x + plain.out((weights @ value).transpose(1, 2).reshape(BATCH, length, SIZE)))
    torch.testing.assert_close(local(x, None), expected)


@pytest.mark.parametrize("positions", ["rope", "rope2d"])
def test_rotary_scores_depend_on_displacement_alone(positions: str) -> None:
    rows, cols = 4, 5
    rotary = RotaryPositions(positions, "attention", 8, 1, rows * cols, (rows, cols))
    angles = rotary()
    assert angles is not None
    cos, sin = angles
    q, k = torch.randn(8), torch.randn(8)

    def turn(v: Tensor) -> Tensor:
        return v * cos[:, 0] + torch.cat([-v[4:], v[:4]]) * sin[:, 0]

    scores = (turn(q) @ turn(k).T).view(rows, cols, rows, cols)
    torch.testing.assert_close(scores[1, 1, 2, 3], scores[0, 0, 1, 2])
    torch.testing.assert_close(scores[3, 2, 1, 1], scores[2, 3, 0, 2])
    assert abs(scores[0, 0, 1, 0] - scores[0, 0, 0, 1]) > 1e-4


def test_attention_is_softmax_of_scaled_products_over_all_tokens() -> None:
    torch.manual_seed(0)
    mixer, x = AttentionMixing(SIZE, 2), tokens()
    q, k, v = mixer.qkv(x).view(BATCH, LENGTH, 3, 2, SIZE // 2).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / (SIZE // 2) ** 0.5, dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(mixer(x, None), rms_norm(x + mixer.out(mixed)))


def test_widths_are_the_published_ones() -> None:
    assert swiglu_width(512, 4, None) == 1536
    assert swiglu_width(64, 4, None) == 256
    assert swiglu_width(97, 4, None) == 512
    assert swiglu_width(512, 4, 96) == 96


def test_truncated_normal_has_the_deviation_asked_for() -> None:
    drawn = truncated_normal_(torch.empty(200_000), 0.5)
    assert drawn.std().item() == pytest.approx(0.5, rel=0.01)
    assert drawn.abs().max() < 2 * 0.5 / 0.879


@pytest.mark.thorough
def test_the_papers_sizes() -> None:
    def count(core: Core) -> float:
        return sum(p.numel() for p in core.parameters()) / 1e6

    assert count(HRM(512, 82)) == pytest.approx(27.3, abs=0.1)
    assert count(TRM(512, 97, mixing="attention")) == pytest.approx(7, abs=0.5)
    assert count(TRM(512, 97, mixing="mlp")) == pytest.approx(5, abs=0.5)


BAD = [
    ("hmr", {}, "did you mean hrm"),
    ("trm", {"H_cycle": 2}, "did you mean H_cycles"),
    ("trm", {"layers": 0}, "layers=0"),
    ("trm", {"L_cycles": 0}, "L_cycles=0"),
    ("trm", {"H_cycles": 1.5}, "H_cycles=1.5"),
    ("trm", {"mixing": "convolution"}, "did you mean conv"),
    ("trm", {"positions": "rope3d"}, "did you mean rope2d"),
    ("trm", {"cycle_gradient": "first"}, "cycle_gradient='first': expected last or all"),
    ("hrm", {"num_heads": 3}, "num_heads=3 does not divide hidden_size=8"),
    ("hrm", {"num_heads": 8}, "even head size"),
    ("hrm", {"positions": "rope2d"}, "divisible by 4"),
    ("hrm", {"H_layers": -1}, "H_layers=-1"),
    ("trm", {"inner_size": 0}, "inner_size=0"),
    ("trm", {"expansion": 0.0}, "expansion=0.0"),
    ("feedforward", {"layers": 0}, "layers=0"),
    ("gru", {"memory_size": 0}, "memory_size=0"),
    ("convlstm", {"ticks": 0}, "ticks=0"),
    ("convlstm", {"layers": 0}, "layers=0"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_arguments_are_named_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        build_core(name, hidden_size=SIZE, length=LENGTH, grid=GRID, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("convlstm", {}), ("trm", {"mixing": "attention_conv"}), ("trm", {"positions": "rope2d", "num_heads": 2})],
)
def test_a_missing_or_oversized_grid_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="grid=None"):
        build_core(name, hidden_size=SIZE, length=LENGTH, grid=None, **options)
    with pytest.raises(ValueError, match="9x9 has 81 cells"):
        build_core(name, hidden_size=SIZE, length=80, grid=(9, 9), **options)


def test_every_registered_core_has_a_variant_here() -> None:
    elsewhere = {"gtrxl"}  # its memory begins empty; `test_baseline_cores.py` asks the same of it
    assert {name for name, _ in VARIANTS.values()} | elsewhere == set(CORES)


def test_a_cell_hears_its_row_its_column_and_its_tile() -> None:
    """On a 4x4 grid with tiles of 2x2, whatever the weights: which cells change with which."""
    from hrm_agent.cores.blocks import UnitsMixing

    torch.manual_seed(0)
    mixing = UnitsMixing(3, 16, (4, 4))
    heard = torch.autograd.functional.jacobian(lambda x: mixing._units(x)[0, :, 1], torch.randn(1, 16, 3))[:, 0, :, 1]
    row, col = torch.arange(16) // 4, torch.arange(16) % 4
    tile = row // 2 * 2 + col // 2
    weights = mixing.weight[:, 1] / 2  # the root of a unit's size
    kinds = [(unit[:, None] == unit[None]).float() for unit in (row, col, tile)]
    torch.testing.assert_close(heard, sum(w * same for w, same in zip(weights, kinds, strict=True)))


@pytest.mark.parametrize("grid", [None, (2, 8), (6, 6)])
def test_units_need_a_grid_with_square_tiles(grid: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="mixing=units needs a square grid with square tiles"):
        build_core("trm", hidden_size=8, length=36, grid=grid, mixing="units", positions="none")
