"""Whole segments of HRM and TRM in one launch on a GPU (Triton), forward only: the device code.

One program computes one sample: all cycles and layers of any number of segments, independently of the host and of the
other samples. A sample's data (`z_H`, `z_L`, tokens, the residual stream, queries, keys, values; 18 kB each for 144
tokens of width 64 in bfloat16) exceed the registers of a program: a multiprocessor has 256 kB, and 144 x 64 sums in
float32 alone take 37 kB, so a program over all rows would leave no room for a second one to hide its latencies. Triton
has no indexable shared memory either: attention needs every token's keys, and a register tensor cannot be sliced. So a
program iterates over tiles of rows, whose sums, norms and softmax are in registers in float32; everything else is in
its own scratch buffer of 129 kB. Programs are persistent (one scratch buffer serves many samples), so 264 of them (two
per multiprocessor of an H100) hold 34 MB: within its 50 MB of L2, recent data within L1.

The weights of a layer are read once per tile: with 64 rows, 33 operations per byte from L1 or L2. This bandwidth, not
arithmetic, bounds the design; larger tiles (`rows=128, warps=8`) halve it at the price of registers.

Sums, norms, softmax: float32. Products: bfloat16, or float32 to check against the reference. The last tile is only as
wide as the remaining rows: 144 tokens are 64 + 64 + 16.

Every function works on a tile of rows whose sums are in registers. `area` is the program's own scratch. The launch,
with the weights of a core, is in `hrm_agent.recurrence.triton`; the plain cores are the reference.
"""

# fmt: off
# The formatter gives every constant a line of its own, and a kernel's signature would not fit on a screen.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

NORM_EPS = 1e-5
"""As in `hrm_agent.cores.blocks`, which kernels do not import; a test compares them."""

# Layout of a program's scratch, each float[tokens, D]. The convolution's second stream takes the place of the queries.
_Z_H, _Z_L, _X, _STREAM, _QUERIES, _KEYS, _VALUES = (tl.constexpr(i) for i in range(7))
_EPS = tl.constexpr(NORM_EPS)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _plus_product(total, a, b, PRECISION: tl.constexpr):
    """total + a @ b; under the interpreter, which has no bfloat16 products, the factors are converted to float32."""
    if PRECISION == "upcast":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _normed(y, D: tl.constexpr):
    return y * tl.rsqrt(tl.sum(y * y, 1) / D + _EPS)[:, None]


@triton.jit
def _load(area, start, D: tl.constexpr, ROWS: tl.constexpr):
    """float32[ROWS, D] from row `start` on."""
    at = (start + tl.arange(0, ROWS))[:, None] * D + tl.arange(0, D)[None]
    return tl.load(area + at).to(tl.float32)


@triton.jit
def _store(area, start, value, D: tl.constexpr, ROWS: tl.constexpr):
    at = (start + tl.arange(0, ROWS))[:, None] * D + tl.arange(0, D)[None]
    tl.store(area + at, value.to(area.dtype.element_ty))


@triton.jit
def _take_in(area, source, start, LENGTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """Rows of a sample into the scratch; zeros behind its last token."""
    rows = start + tl.arange(0, ROWS)
    at = rows[:, None] * D + tl.arange(0, D)[None]
    _store(area, start, tl.load(source + at, mask=(rows < LENGTH)[:, None], other=0.0), D, ROWS)


@triton.jit
def _give_out(area, target, start, LENGTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    rows = start + tl.arange(0, ROWS)
    at = rows[:, None] * D + tl.arange(0, D)[None]
    value = _load(area, start, D, ROWS).to(target.dtype.element_ty)
    tl.store(target + at, value, mask=(rows < LENGTH)[:, None])


@triton.jit
def _inject(area, high, start, SLOT: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """The stream that a network begins with: z_H + z_L for the high level, z_L + (z_H + x) for the low one."""
    total = _load(area + _Z_H * SLOT, start, D, ROWS)
    total += _load(area + _X * SLOT, start, D, ROWS) * tl.where(high, 0.0, 1.0)
    total += _load(area + _Z_L * SLOT, start, D, ROWS)
    _store(area + _STREAM * SLOT, start, total, D, ROWS)


@triton.jit
def _project(
    area, qkv, cos, sin, start, SLOT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr, ROPE: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr,
):
    """Queries, keys and values of a tile of rows.

    The columns of `qkv` are the first halves of all heads' queries, their second halves, keys likewise, values: rotary
    positions then mix two whole tiles, and no tile has to be sliced.
    """
    channels = tl.arange(0, D)
    halves = tl.arange(0, D // 2)
    rows = start + tl.arange(0, ROWS)
    stream = _load(area + _STREAM * SLOT, start, D, ROWS).to(qkv.dtype.element_ty)
    within = halves % (HEAD // 2)
    place = (halves // (HEAD // 2) * HEAD + within)[None] + rows[:, None] * D
    weights = qkv + channels[:, None] * (3 * D)
    for part in tl.static_range(2):
        begin = weights + (part * D + halves)[None]
        first = _plus_product(tl.zeros([ROWS, D // 2], tl.float32), stream, tl.load(begin), PRECISION)
        second = _plus_product(tl.zeros([ROWS, D // 2], tl.float32), stream, tl.load(begin + D // 2), PRECISION)
        if ROPE:
            turn = rows[:, None] * (HEAD // 2) + within[None]
            c, s = tl.load(cos + turn), tl.load(sin + turn)
            turned = first * c - second * s
            second = second * c + first * s
            first = turned
        to = area + (_QUERIES + part) * SLOT + place
        tl.store(to, first.to(area.dtype.element_ty))
        tl.store(to + HEAD // 2, second.to(area.dtype.element_ty))
    matrix = tl.load(weights + (2 * D + channels)[None])
    values = _plus_product(tl.zeros([ROWS, D], tl.float32), stream, matrix, PRECISION)
    _store(area + _VALUES * SLOT, start, values, D, ROWS)


@triton.jit
def _look_at(
    area, query, most, total, mixed, head, start, LENGTH: tl.constexpr, SLOT: tl.constexpr, D: tl.constexpr,
    HEAD: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
):
    """Add a tile of keys to the running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867)."""
    keys = start + tl.arange(0, KEYS)
    at = area + head * HEAD + keys[:, None] * D + tl.arange(0, HEAD)[None]
    scores = tl.zeros([ROWS, KEYS], tl.float32)
    scores = _plus_product(scores, query, tl.trans(tl.load(at + _KEYS * SLOT)), PRECISION)
    scores *= _LOG2_E / (HEAD * 1.0) ** 0.5
    scores = tl.where((keys < LENGTH)[None], scores, float("-inf"))
    new = tl.maximum(most, tl.max(scores, 1))
    shares = tl.exp2(scores - new[:, None])
    shrink = tl.exp2(most - new)
    values = tl.load(at + _VALUES * SLOT)
    mixed = _plus_product(mixed * shrink[:, None], shares.to(values.dtype), values, PRECISION)
    return new, total * shrink + tl.sum(shares, 1), mixed


@triton.jit
def _attend(
    area, out, start, LENGTH: tl.constexpr, SLOT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr,
    TILES: tl.constexpr, WIDE: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
):
    """The stream of a tile of rows after attention, residual and norm; float32[ROWS, D]."""
    channels, inside = tl.arange(0, D), tl.arange(0, HEAD)
    rows = start + tl.arange(0, ROWS)
    total = _load(area + _STREAM * SLOT, start, D, ROWS)
    for head in range(D // HEAD):
        query = tl.load(area + _QUERIES * SLOT + head * HEAD + rows[:, None] * D + inside[None])
        most = tl.full([ROWS], float("-inf"), tl.float32)
        weight = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, HEAD], tl.float32)
        for tile in range(TILES):
            most, weight, mixed = _look_at(
                area, query, most, weight, mixed, head, tile * WIDE, LENGTH, SLOT, D, HEAD, PRECISION, WIDE, ROWS
            )
        if TAIL:
            most, weight, mixed = _look_at(
                area, query, most, weight, mixed, head, TILES * WIDE, LENGTH, SLOT, D, HEAD, PRECISION, TAIL, ROWS
            )
        attended = (mixed / weight[:, None]).to(out.dtype.element_ty)
        matrix = tl.load(out + (head * HEAD + inside)[:, None] * D + channels[None])
        total = _plus_product(total, attended, matrix, PRECISION)
    return _normed(total, D)


@triton.jit
def _convolve(
    source,
    taps,
    start,
    GRID_ROWS: tl.constexpr,
    GRID_COLS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The stream of a tile of cells after a 3x3 depthwise convolution, residual and norm; float32[ROWS, D]."""
    channels = tl.arange(0, D)
    cells = start + tl.arange(0, ROWS)
    row, col = cells // GRID_COLS, cells % GRID_COLS
    total = _load(source, start, D, ROWS)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (row + down >= 0) & (row + down < GRID_ROWS) & (col + right >= 0) & (col + right < GRID_COLS)
        at = (cells + down * GRID_COLS + right)[:, None] * D + channels[None]
        neighbour = tl.load(source + at, mask=inside[:, None], other=0.0).to(tl.float32)
        total += neighbour * tl.load(taps + tap * D + channels).to(tl.float32)[None]
    return _normed(total, D)


@triton.jit
def _feed(
    y,
    gate_up,
    down,
    D: tl.constexpr,
    INNER: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
):
    """SwiGLU over channels, residual and norm of a tile of rows."""
    channels, chunk = tl.arange(0, D), tl.arange(0, CHUNK)
    factors = y.to(gate_up.dtype.element_ty)
    for begin in range(0, INNER, CHUNK):
        into = gate_up + channels[:, None] * (2 * INNER) + (begin + chunk)[None]
        gate = _plus_product(tl.zeros([ROWS, CHUNK], tl.float32), factors, tl.load(into), PRECISION)
        up = _plus_product(tl.zeros([ROWS, CHUNK], tl.float32), factors, tl.load(into + INNER), PRECISION)
        hidden = (gate * tl.sigmoid(gate) * up).to(down.dtype.element_ty)
        back = tl.load(down + (begin + chunk)[:, None] * D + channels[None])
        y = _plus_product(y, hidden, back, PRECISION)
    return _normed(y, D)


@triton.jit
def _mix_and_feed(
    area, mix, gate_up, down, source, target, start, ATTENTION: tl.constexpr, GRID_ROWS: tl.constexpr,
    GRID_COLS: tl.constexpr, LENGTH: tl.constexpr, SLOT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr,
    INNER: tl.constexpr, CHUNK: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr,
):
    """One block for a tile of rows; `mix` is attention's `out`, or the taps of the convolution."""
    if ATTENTION:
        y = _attend(area, mix, start, LENGTH, SLOT, D, HEAD, TILES, WIDE, TAIL, PRECISION, ROWS)
    else:
        y = _convolve(area + source * SLOT, mix, start, GRID_ROWS, GRID_COLS, D, ROWS)
    y = _feed(y, gate_up, down, D, INNER, CHUNK, PRECISION, ROWS)
    _store(area + target * SLOT, start, y, D, ROWS)


@triton.jit
def _take_all(
    area, x, z_h, z_l, LENGTH: tl.constexpr, D: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
    TAIL: tl.constexpr,
):
    """A sample's tokens and latents into the scratch."""
    SLOT: tl.constexpr = (TILES * WIDE + TAIL) * D
    for tile in range(TILES):
        _take_in(area + _Z_H * SLOT, z_h, tile * WIDE, LENGTH, D, WIDE)
        _take_in(area + _Z_L * SLOT, z_l, tile * WIDE, LENGTH, D, WIDE)
        _take_in(area + _X * SLOT, x, tile * WIDE, LENGTH, D, WIDE)
    if TAIL:
        _take_in(area + _Z_H * SLOT, z_h, TILES * WIDE, LENGTH, D, TAIL)
        _take_in(area + _Z_L * SLOT, z_l, TILES * WIDE, LENGTH, D, TAIL)
        _take_in(area + _X * SLOT, x, TILES * WIDE, LENGTH, D, TAIL)


@triton.jit
def _give_all(
    area, new_h, new_l, LENGTH: tl.constexpr, D: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
    TAIL: tl.constexpr,
):
    """A sample's latents out of the scratch."""
    SLOT: tl.constexpr = (TILES * WIDE + TAIL) * D
    for tile in range(TILES):
        _give_out(area + _Z_H * SLOT, new_h, tile * WIDE, LENGTH, D, WIDE)
        _give_out(area + _Z_L * SLOT, new_l, tile * WIDE, LENGTH, D, WIDE)
    if TAIL:
        _give_out(area + _Z_H * SLOT, new_h, TILES * WIDE, LENGTH, D, TAIL)
        _give_out(area + _Z_L * SLOT, new_l, TILES * WIDE, LENGTH, D, TAIL)


@triton.jit
def _inject_all(area, high, D: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr, TAIL: tl.constexpr):
    SLOT: tl.constexpr = (TILES * WIDE + TAIL) * D
    for tile in range(TILES):
        _inject(area, high, tile * WIDE, SLOT, D, WIDE)
    if TAIL:
        _inject(area, high, TILES * WIDE, SLOT, D, TAIL)


@triton.jit
def run_segments(
    x, z_h, z_l, new_h, new_l, scratch, qkv, mix, gate_up, down, cos, sin, batch, updates, ATTENTION: tl.constexpr,
    ROPE: tl.constexpr, GRID_ROWS: tl.constexpr, GRID_COLS: tl.constexpr, LENGTH: tl.constexpr, D: tl.constexpr,
    HEAD: tl.constexpr, INNER: tl.constexpr, CHUNK: tl.constexpr, L_CYCLES: tl.constexpr, LOW_LAYERS: tl.constexpr,
    HIGH_FIRST: tl.constexpr, HIGH_LAYERS: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr, TAIL: tl.constexpr,
    SLOTS: tl.constexpr, PRECISION: tl.constexpr,
):
    """`updates` updates of the latents, of which every (L_CYCLES + 1)-th is z_H's.

    There is a barrier wherever rows are read that other threads of the program have written. Loops whose end is known
    only at run time are `while`: the interpreter does not accept a tensor as the end of a range (NumPy 2.4).
    """
    SLOT: tl.constexpr = (TILES * WIDE + TAIL) * D
    MIX: tl.constexpr = D * D if ATTENTION else 9 * D
    area = scratch + tl.program_id(0).to(tl.int64) * (SLOTS * SLOT)
    sample = tl.program_id(0)
    while sample < batch:
        here = sample.to(tl.int64) * (LENGTH * D)
        _take_all(area, x + here, z_h + here, z_l + here, LENGTH, D, TILES, WIDE, TAIL)
        tl.debug_barrier()
        update = 0
        while update < updates:
            high = update % (L_CYCLES + 1) == L_CYCLES
            first = tl.where(high, HIGH_FIRST, 0)
            last = first + tl.where(high, HIGH_LAYERS, LOW_LAYERS) - 1
            _inject_all(area, high, D, TILES, WIDE, TAIL)
            tl.debug_barrier()
            layer = first
            while layer <= last:
                if ATTENTION:
                    of_layer = qkv + layer * (3 * D * D)
                    for tile in range(TILES):
                        _project(area, of_layer, cos, sin, tile * WIDE, SLOT, D, HEAD, ROPE, PRECISION, WIDE)
                    if TAIL:
                        _project(area, of_layer, cos, sin, TILES * WIDE, SLOT, D, HEAD, ROPE, PRECISION, TAIL)
                    tl.debug_barrier()
                # A convolution reads its neighbours' rows: two streams take turns.
                turn = 0 if ATTENTION else (layer - first) % 2
                source = _STREAM + turn
                other = _STREAM if ATTENTION else _STREAM + 1 - turn
                target = tl.where(layer == last, tl.where(high, _Z_H, _Z_L), other)
                own_mix, own_gate_up = mix + layer * MIX, gate_up + layer * (2 * D * INNER)
                own_down = down + layer * (D * INNER)
                for tile in range(TILES):
                    _mix_and_feed(
                        area, own_mix, own_gate_up, own_down, source, target, tile * WIDE,
                        ATTENTION, GRID_ROWS, GRID_COLS, LENGTH, SLOT, D, HEAD, INNER, CHUNK, TILES, WIDE, TAIL,
                        PRECISION, WIDE,
                    )  # fmt: skip
                if TAIL:
                    _mix_and_feed(
                        area, own_mix, own_gate_up, own_down, source, target, TILES * WIDE,
                        ATTENTION, GRID_ROWS, GRID_COLS, LENGTH, SLOT, D, HEAD, INNER, CHUNK, TILES, WIDE, TAIL,
                        PRECISION, TAIL,
                    )  # fmt: skip
                tl.debug_barrier()
                layer += 1
            update += 1
        _give_all(area, new_h + here, new_l + here, LENGTH, D, TILES, WIDE, TAIL)
        tl.debug_barrier()
        sample += tl.num_programs(0)
