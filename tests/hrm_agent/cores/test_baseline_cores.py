"""Baseline cores: each is what its paper says, checked against a slow reference or a change that must matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hrm_agent.cores import DRC, LSTM, VIN, Core, GRUCore, GTrXL, build_core, map_state
from hrm_agent.cores.norm import rms_norm

GRID, PREFIX, SIZE, BATCH = (4, 5), 1, 8, 3
LENGTH = PREFIX + GRID[0] * GRID[1]
FLAT: dict[str, dict[str, Any]] = {
    "lstm": {"memory_size": 7},
    "gru": {"memory_size": 7, "pooling": "flatten"},
    "gtrxl": {"width": 8, "num_heads": 2, "layers": 2, "memory_steps": 3},
    "drc": {"num_layers": 2, "repeats": 2, "features": 12},
}


def make(name: str, grid: tuple[int, int] = GRID, **options: Any) -> Core:
    torch.manual_seed(0)
    return build_core(name, hidden_size=SIZE, length=PREFIX + grid[0] * grid[1], grid=grid, **options)


def tokens(seed: int = 1, batch: int = BATCH, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FLAT)
@torch.no_grad()
def test_flattened_cores_know_positions_and_say_the_same_at_every_token(name: str) -> None:
    core, x = make(name, **FLAT[name]), tokens()
    state = core.initial_state(BATCH)
    y, _ = core(x, state)
    moved, _ = core(x.flip(1), state)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert (y - moved).abs().amax(dim=(1, 2)).min() > 1e-3


@torch.no_grad()
def test_a_pooling_gru_does_not_know_positions() -> None:
    core, x = make("gru"), tokens()
    state = core.initial_state(BATCH)
    torch.testing.assert_close(core(x, state)[0].flip(1), core(x.flip(1), state)[0])


@torch.no_grad()
def test_the_lstm_is_torchs_own_on_the_flattened_tokens() -> None:
    core = make("lstm", memory_size=7)
    assert isinstance(core, LSTM)
    reference = torch.nn.LSTM(7, 7)
    reference.load_state_dict({f"{name}_l0": value for name, value in core.cell.state_dict().items()})
    state = core.initial_state(BATCH)
    seen = [tokens(seed) for seed in range(4)]
    outputs, (h, c) = reference(torch.stack([core.flat(x) for x in seen]), (state.h[None], state.c[None]))
    for t, x in enumerate(seen):
        y, state = core(x, state)
        torch.testing.assert_close(
            y[:, 0], rms_norm(core.answer.out(core.answer.inner(outputs[t]).sigmoid() * core.answer.inner(outputs[t])))
        )
    torch.testing.assert_close(state, type(state)(h[0], c[0]))
    forget = slice(7, 14)
    assert (core.cell.bias_ih + core.cell.bias_hh)[forget].eq(1).all()


@torch.no_grad()
def test_a_flattening_gru_is_torchs_own_on_the_flattened_tokens() -> None:
    core = make("gru", **FLAT["gru"])
    assert isinstance(core, GRUCore)
    assert core.flat is not None
    reference = torch.nn.GRU(7, 7)
    reference.load_state_dict({f"{name}_l0": value for name, value in core.cell.state_dict().items()})
    state = core.initial_state(BATCH)
    seen = [tokens(seed) for seed in range(4)]
    outputs, h = reference(torch.stack([core.flat(x) for x in seen]), state.h[None])
    for t, x in enumerate(seen):
        y, state = core(x, state)
        inner = core.from_memory(outputs[t])
        torch.testing.assert_close(y[:, 0], rms_norm(core.out(inner.sigmoid() * inner)))
    torch.testing.assert_close(state.h, h[0])


def test_a_pooling_gru_has_the_weights_it_always_had() -> None:
    names = {name.partition(".")[0] for name in make("gru").state_dict()}
    assert names == {"cell", "from_token", "from_memory", "out", "h_init"}


@torch.no_grad()
def test_drc_ticks_its_layers_with_the_top_one_fed_back_and_reads_grid_and_observation() -> None:
    """Cell by cell of the definition: D layers, N ticks, the lowest sees the top of the tick before."""
    core = make("drc", **FLAT["drc"])
    assert isinstance(core, DRC)
    x, state = tokens(), core.initial_state(BATCH)
    y, after = core(x, state)
    h, c = ([t[:, d].permute(0, 3, 1, 2) for d in range(2)] for t in state)
    image = core._image(x)
    for _ in range(2):
        below = h[1]
        for d in range(2):
            pooled = core.layers[d].pooled(torch.cat([h[d].amax((2, 3)), h[d].mean((2, 3))], -1))
            gates = core.observers[d](image) + core.layers[d].recurrent(torch.cat([below, h[d]], 1))
            forget, enter, leave, new = (gates + pooled[:, :, None, None]).chunk(4, 1)
            c[d] = (forget + 1).sigmoid() * c[d] + enter.sigmoid() * new.tanh()
            below = h[d] = leave.sigmoid() * c[d].tanh()
    torch.testing.assert_close(after.h, torch.stack([t.permute(0, 2, 3, 1) for t in h], 1))
    top = h[1].permute(0, 2, 3, 1).flatten(1)
    expected = rms_norm(core.out(core.features(torch.cat([x.flatten(1), top], 1)).relu()))
    torch.testing.assert_close(y, expected[:, None].expand_as(y))


@torch.no_grad()
def test_drc_read_by_cells_is_the_convlstm() -> None:
    drc = make("drc", num_layers=2, repeats=3, reads="cells")
    same = make("convlstm", layers=2, ticks=3)
    same.load_state_dict(drc.state_dict())
    state = same.initial_state(BATCH)
    torch.testing.assert_close(drc(tokens(), state), same(tokens(), state))


@torch.no_grad()
def test_gtrxl_attends_to_the_steps_it_remembers_and_to_no_others() -> None:
    """One layer against softmax over the steps since the episode began, at most `memory_steps` and the present one."""
    core = make("gtrxl", width=8, num_heads=2, layers=1, memory_steps=3)
    assert isinstance(core, GTrXL)
    layer, state, seen = core.layers[0], core.initial_state(BATCH), [tokens(seed) for seed in range(6)]
    for t, x in enumerate(seen):
        y, state = core(x, state)
        stream = [core.flat(past) for past in seen[max(0, t - 3) : t + 1]]
        query, key, value = (
            torch.stack(parts)
            for parts in zip(*(layer.qkv(layer.before_attention(s)).chunk(3, -1) for s in stream), strict=True)
        )
        attended = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            ages = layer.ages[head, 4 - len(stream) :, None]  # the present step has the last vector
            weights = ((query[-1, :, part] * (key[..., part] + ages)).sum(-1) / 2).softmax(0)
            attended.append((weights[..., None] * value[..., part]).sum(0))
        h = layer.after_attention(stream[-1], layer.out(torch.cat(attended, -1)).relu())
        h = layer.after_inner(h, layer.outer(layer.inner(layer.before_inner(h)).relu()).relu())
        torch.testing.assert_close(y, core.answer(h))
    assert state.seen.eq(1).all()


@torch.no_grad()
def test_gtrxls_gates_are_the_papers_and_begin_almost_closed() -> None:
    core = make("gtrxl", width=8, num_heads=2, layers=1, memory_steps=3)
    gate, x, y = core.layers[0].after_inner, torch.randn(5, 8), torch.randn(5, 8)
    w_r, w_z, w_g = gate.from_y.weight.chunk(3)
    u_r, u_z = gate.from_x.weight.chunk(2)
    r = (y @ w_r.T + x @ u_r.T).sigmoid()
    z = (y @ w_z.T + x @ u_z.T - 2.0).sigmoid()
    new = (y @ w_g.T + (r * x) @ gate.from_reset.weight.T).tanh()
    torch.testing.assert_close(gate(x, y), (1 - z) * x + z * new)


@torch.no_grad()
def test_what_an_unseen_step_left_in_gtrxls_memory_is_not_read() -> None:
    core, x = make("gtrxl", **FLAT["gtrxl"]), tokens()
    fresh = core.initial_state(BATCH)
    dirty = fresh._replace(memory=torch.randn_like(fresh.memory))
    assert torch.equal(core(x, fresh)[0], core(x, dirty)[0])
    _, used = core(tokens(2), fresh)
    assert (core(x, used)[0] - core(x, fresh)[0]).abs().max() > 1e-4


def test_gtrxl_keeps_its_shapes_its_rows_apart_and_trains_every_weight() -> None:
    core, x = make("gtrxl", **FLAT["gtrxl"]), tokens()
    _, state = core(tokens(2), core.initial_state(BATCH))
    before = map_state(Tensor.clone, state)
    y, after = core(x, state)
    assert y.shape == x.shape
    assert [t.shape for t in after] == [t.shape for t in state]
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    changed = x.clone()
    changed[1] += 1.0
    moved = (core(changed, state)[0] - y).abs().amax((1, 2))
    assert moved[1] > 1e-3
    assert moved[[0, 2]].max() < 1e-5
    (y * tokens(3)).sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_vin_iterates_values_and_takes_the_maximum_over_its_actions() -> None:
    """Against loops over cells, actions and neighbours."""
    core = make("vin", iterations=3, q_channels=4)
    assert isinstance(core, VIN)
    x = tokens(batch=1)
    cells = (x[:, 1:] + x[:, :1]).view(1, *GRID, SIZE).permute(0, 3, 1, 2)
    reward = core.reward(core.inner(cells).relu())[0, 0]
    value, q = torch.zeros(GRID), torch.zeros(4, *GRID)
    for _ in range(3):
        for a in range(4):
            for i in range(GRID[0]):
                for j in range(GRID[1]):
                    near = [
                        (m, n) for m in (-1, 0, 1) for n in (-1, 0, 1) if 0 <= i + m < GRID[0] and 0 <= j + n < GRID[1]
                    ]
                    q[a, i, j] = sum(
                        core.q_of_reward.weight[a, 0, m + 1, n + 1] * reward[i + m, j + n]
                        + core.q_of_value.weight[a, 0, m + 1, n + 1] * value[i + m, j + n]
                        for m, n in near
                    )
        value = q.amax(0)
    y, after = core(x, core.initial_state(1))
    torch.testing.assert_close(after.value[0, :, 0], value.flatten())
    torch.testing.assert_close(y[0, 1:], core.out(q.flatten(1).T))
    assert torch.equal(y[:, :1], x[:, :1])


@torch.no_grad()
def test_segments_of_vin_go_on_iterating() -> None:
    short, long = make("vin", iterations=2), make("vin", iterations=6)
    state, x = short.initial_state(BATCH), tokens()
    for _ in range(3):
        y, state = short(x, state)
    torch.testing.assert_close(y, long(x, long.initial_state(BATCH))[0])


@torch.no_grad()
def test_information_moves_one_cell_an_iteration_in_vin() -> None:
    row = (1, 12)
    core = make("vin", grid=row, iterations=5, q_channels=4)
    x = tokens(length=13)
    changed = x.clone()
    changed[:, 12] += 1.0  # the last cell
    moved = (core(x, core.initial_state(BATCH))[0] - core(changed, core.initial_state(BATCH))[0]).abs().amax((0, 2))
    # One cell by the convolution of the reward, one by Q of the reward, and one by each further iteration.
    assert moved[1:6].max() == 0
    assert moved[6:].min() > 0


@pytest.mark.parametrize("name", [*FLAT, "vin"])
def test_gradient_flows_through_time(name: str) -> None:
    core = make(name, **FLAT.get(name, {"iterations": 3}))
    first = tokens().requires_grad_()
    _, state = core(first, core.initial_state(BATCH))
    y, _ = core(tokens(2), state)
    (y * tokens(3)).sum().backward()
    assert first.grad is not None
    assert first.grad.abs().amax(dim=(1, 2)).min() > 1e-6


def test_wrong_options_are_refused_in_one_line() -> None:
    for name, options, says in (
        ("gtrxl", {"width": 10, "num_heads": 4}, r"width=10 does not divide into num_heads=4"),
        ("gru", {"pooling": "flat"}, r"core.pooling='flat': expected mean_max or flatten"),
        ("drc", {"reads": "cell"}, r"core.reads='cell': expected flatten or cells"),
        ("vin", {"iterations": 0}, r"core.iterations=0: expected an integer from 1"),
    ):
        with pytest.raises(ValueError, match=says):
            make(name, **options)
    for name in ("vin", "drc"):
        with pytest.raises(ValueError, match=f"core={name} needs a grid"):
            build_core(name, hidden_size=SIZE, length=4)
