# mypy: disable-error-code="no-untyped-def"
"""Compiled gated scans for the CPU: forward and backward of `hrm_agent.cores.sweep`, both ways along one axis.

Arrays are [outer, steps, lanes, channels]: lines of `steps` cells, `lanes` of them next to each other in memory.
Rows of an image are outer = batch x rows, lanes = 1; columns are outer = batch, lanes = columns. Channel c has gate
c % groups. Way 0 runs from the first step to the last, way 1 back; there are W ways, 1 or 2.

The innermost loops run over all channels, the gates laid out to as many: with a loop over each group the scan takes
twice as long. numba's own threads are not used, since the batch is split over Python threads
(`hrm_agent.parallel.threads`); the kernels release the GIL.
"""

from functools import partial

import numpy as np

import hrm_envs.jit

kernel = partial(hrm_envs.jit.kernel, nogil=True, error_model="numpy")


@kernel
def scan(x, gates, weight, out):
    """out = sum over ways of weight m, with m[i] = a[i] h[i - 1], h[i] = m[i] + (1 - a[i]) x[i] and h[-1] = 0.

    Args:
        x: float [O, S, M, C].
        gates: float [W, O, S, M, G], the a.
        weight: float [W, C].
        out: float [O, S, M, C], written.
    """
    outer, steps, lanes, channels = x.shape
    groups = gates.shape[4]
    held_lanes = np.empty((lanes, channels), x.dtype)
    a = np.empty(channels, x.dtype)
    for o in range(outer):
        for way in range(len(weight)):
            held_lanes[:] = 0
            w = weight[way]
            for i in range(steps):
                s = steps - 1 - i if way else i
                for m in range(lanes):
                    held, seen, y, gate = held_lanes[m], x[o, s, m], out[o, s, m], gates[way, o, s, m]
                    for start in range(0, channels, groups):
                        for g in range(groups):
                            a[start + g] = gate[g]
                    if way == 0:
                        for c in range(channels):
                            arrived = a[c] * held[c]
                            held[c] = arrived + (seen[c] - a[c] * seen[c])
                            y[c] = w[c] * arrived
                    else:
                        for c in range(channels):
                            arrived = a[c] * held[c]
                            held[c] = arrived + (seen[c] - a[c] * seen[c])
                            y[c] += w[c] * arrived


@kernel
def scan_backward(x, gates, weight, gradient, x_gradient, gate_gradient, weight_gradient):
    """Gradients of `scan` from that of its output; the states h are recomputed, which is cheaper than storing them.

    With l[i] the gradient with respect to h[i] and n[i] = w g[i] + l[i] that with respect to m[i], where g is given:
    l[i - 1] = a[i] n[i], dx[i] = (1 - a[i]) l[i], da[i] = sum over the group's channels of n[i] h[i - 1] - l[i] x[i].

    Args:
        x, gates, weight: as given to `scan`.
        gradient: float [O, S, M, C].
        x_gradient, gate_gradient, weight_gradient: written; shapes of `x`, `gates`, `weight`.
    """
    outer, steps, lanes, channels = x.shape
    groups = gates.shape[4]
    states = np.zeros((steps, lanes, channels), x.dtype)  # h[i - 1]; the first is the zero before the line
    back = np.empty((lanes, channels), x.dtype)
    a, a_gradient = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    # Sums over a line first: float32 keeps more of few large numbers than of many small ones.
    line = np.empty(channels, x.dtype)
    weight_gradient[:] = 0
    for o in range(outer):
        for way in range(len(weight)):
            w = weight[way]
            for i in range(steps - 1):
                s = steps - 1 - i if way else i
                for m in range(lanes):
                    before, held, seen, gate = states[i, m], states[i + 1, m], x[o, s, m], gates[way, o, s, m]
                    for start in range(0, channels, groups):
                        for g in range(groups):
                            a[start + g] = gate[g]
                    for c in range(channels):
                        held[c] = a[c] * before[c] + (seen[c] - a[c] * seen[c])
            back[:] = 0
            line[:] = 0
            for j in range(steps):
                i = steps - 1 - j
                s = steps - 1 - i if way else i
                for m in range(lanes):
                    before, seen, dx = states[i, m], x[o, s, m], x_gradient[o, s, m]
                    dy, onward, gate, da = gradient[o, s, m], back[m], gates[way, o, s, m], gate_gradient[way, o, s, m]
                    for start in range(0, channels, groups):
                        for g in range(groups):
                            a[start + g] = gate[g]
                    if way == 0:
                        for c in range(channels):
                            dx[c] = 0
                    for c in range(channels):
                        arrived = w[c] * dy[c] + onward[c]
                        line[c] += dy[c] * (a[c] * before[c])
                        a_gradient[c] = arrived * before[c] - onward[c] * seen[c]
                        dx[c] += onward[c] - a[c] * onward[c]
                        onward[c] = a[c] * arrived
                    for g in range(groups):
                        da[g] = a_gradient[g]
                    for start in range(groups, channels, groups):
                        for g in range(groups):
                            da[g] += a_gradient[start + g]
            for c in range(channels):
                weight_gradient[way, c] += line[c]


@kernel
def lay_logits(projected, logits):
    """Logits of the gates: a cell's own part plus the part that the cell before it contributes.

    Args:
        projected: float [O, S, M, W, 2, G]; per way, a cell's own part and its part for the next cell.
        logits: float [W, O, S, M, G], written.
    """
    outer, steps, lanes, ways, _, groups = projected.shape
    for way in range(ways):
        for o in range(outer):
            for s in range(steps):
                behind = s + 1 if way else s - 1
                for m in range(lanes):
                    own, to = projected[o, s, m, way, 0], logits[way, o, s, m]
                    if 0 <= behind < steps:
                        other = projected[o, behind, m, way, 1]
                        for g in range(groups):
                            to[g] = own[g] + other[g]
                    else:
                        for g in range(groups):
                            to[g] = own[g]


@kernel
def lay_logits_backward(gates, gate_gradient, gradient):
    """From the gradient of the gates to that of `lay_logits`'s input, through the sigmoid between them.

    Args:
        gates, gate_gradient: float [W, O, S, M, G].
        gradient: float [O, S, M, W, 2, G], written.
    """
    ways, outer, steps, lanes, groups = gates.shape
    for way in range(ways):
        for o in range(outer):
            for s in range(steps):
                behind = s + 1 if way else s - 1
                ahead = s - 1 if way else s + 1
                for m in range(lanes):
                    a, da, own = gates[way, o, s, m], gate_gradient[way, o, s, m], gradient[o, s, m, way, 0]
                    for g in range(groups):
                        own[g] = da[g] * a[g] * (1 - a[g])
                    if 0 <= behind < steps:
                        other = gradient[o, behind, m, way, 1]
                        for g in range(groups):
                            other[g] = own[g]
                    if not 0 <= ahead < steps:
                        gradient[o, s, m, way, 1] = 0
