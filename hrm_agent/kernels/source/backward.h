// One layer backward.

#pragma once

#include "forward.h"

namespace {

struct Gradients {  // of a layer's weights; added to
  float *first, *second, *gate_up, *down;
};

// A right-hand matrix in the precision of the stack.
struct Either {
  Right full;
  Right16 narrow;
};

// What the products of the backward multiply by.
struct PackedBack {
  const float* kernel;
  Either first, second, gate_up, down;
};

PackedBack pack_back(const Stack& s, i64 layer) {
  Weights w = weights_of(s, layer);
  PackedBack p{};
  auto right = [&](const float* weight, i64 inner, i64 columns) {
    float* space = arena.take(packed_size(inner, columns));
    if (s.bf16) return Either{{}, pack16_rows(weight, inner, columns, columns, reinterpret_cast<pair*>(space))};
    return Either{pack_rows(weight, inner, columns, space), {}};
  };
  p.gate_up = right(w.gate_up, 2 * s.inner, s.size);
  p.down = right(w.down, s.size, s.inner);
  if (s.mixing == CONV && !w.first) return p;
  if (s.mixing == CONV) {
    float* kernel = arena.take(KERNELS * s.size);
    turn_kernel(w.first, s.size, kernel);
    p.kernel = kernel;
  } else if (s.mixing == ATTENTION) {
    p.first = right(w.first, 3 * s.size, s.size);
    p.second = right(w.second, s.size, s.size);
  }
  return p;
}

// Rows that are a power of two apart share few places of a cache: columns read across them drive each other out.
i64 apart(const Stack& s, i64 size) { return s.bf16 ? size : size + 2 * LINE; }

// to[rows, columns] (+)= a[rows, inner] w; rows of a are `row` floats apart.
void product(const Stack& s, const float* a, i64 row, i64 rows, i64 inner, i64 columns, const Either& w, float* to,
             bool add) {
  if (!s.bf16) return multiply(rows, columns, inner, rows_of(a, row), w.full, to, columns, add);
  i64 mark = arena.mark();
  pair* narrow = reinterpret_cast<pair*>(arena.take(rows * inner / 2));
  narrow_row(a, rows * inner, reinterpret_cast<uint16_t*>(narrow));
  multiply16(rows, columns, inner / 2, rows16(narrow, inner / 2), w.narrow, to, columns, add);
  arena.back(mark);
}

// to[m, n] += a[tokens, m]^T b[tokens, n], the gradient of a matrix; rows of b are `row` floats apart.
void outer(const Stack& s, const float* a, i64 m, const float* b, i64 row, i64 n, i64 tokens, float* to) {
  if (!s.bf16) return multiply(m, n, tokens, columns_of(a, m), plain(b, row), to, n, true);
  i64 mark = arena.mark(), pairs = (tokens + 1) / 2;
  pair *left = reinterpret_cast<pair*>(arena.take(pairs * m)), *right = reinterpret_cast<pair*>(arena.take(pairs * n));
  pair_rows(a, tokens, m, left);
  pair_rows(b, tokens, n, right);
  multiply16(m, n, pairs, {left, 1, m}, {right, n, PANEL}, to, n, true);
  arena.back(mark);
}

i64 packed_back_floats(const Stack& s) {
  i64 size = packed_size(2 * s.inner, s.size) + packed_size(s.size, s.inner) + up(KERNELS * s.size, LINE);
  if (s.mixing == ATTENTION) size += packed_size(3 * s.size, s.size) + packed_size(s.size, s.size);
  return size + 8 * LINE;
}

i64 backward_floats(const Stack& s, i64 samples) {
  i64 tokens = samples * s.length;
  i64 size = 4 * up(tokens * s.size, LINE) + 2 * up(tokens * s.inner, LINE) + up(tokens * 2 * s.inner, LINE) + 16 * LINE;
  size += 2 * tokens * 2 * LINE;  // see apart
  if (s.mixing == ATTENTION)
    size += AttentionSpace::size(s) + up(tokens * 3 * s.size, LINE) + up(s.length * up(s.length, LINE), LINE) + 8 * LINE;
  if (s.mixing == MLP) size += 4 * up(2 * s.position_inner * s.size, LINE) + 8 * LINE;
  i64 widest = 2 * s.inner > 3 * s.size ? 2 * s.inner : 3 * s.size;
  return size + (tokens + 1) * (widest + s.inner + s.size) / 2 + 4 * LINE;  // products in bfloat16
}

void norm_backward_positions(const Stack& s, const float* g, const float* y, const float* scale, float* to) {
  for (i64 c = 0; c < s.size; c += W) {
    vec along{};
    for (i64 t = 0; t < s.length; t++) along += load(g + t * s.size + c) * load(y + t * s.size + c);
    vec mean = along / static_cast<float>(s.length), factor = load(scale + c);
    for (i64 t = 0; t < s.length; t++)
      store(to + t * s.size + c, (load(g + t * s.size + c) - load(y + t * s.size + c) * mean) * factor);
  }
}

// One sample of mixing over positions: g[length, D], the gradient before the norm -> to[length, D], that of x.
void mix_positions_backward(const Stack& s, const Weights& w, const Gradients& gw, const float* x, const float* gate_up,
                            const float* g, float* to) {
  i64 width = s.position_inner, mark = arena.mark(), all = width * s.size;
  float *hidden_g = arena.take(all), *hidden = arena.take(all), *gate_up_g = arena.take(2 * all);
  float *turned = arena.take(2 * all), *turned_hidden = turned;
  multiply(width, s.size, s.length, columns_of(w.second, width), plain(g, s.size), hidden_g, s.size);
  for (i64 i = 0; i < all; i += W) {
    vec gate = load(gate_up + i), u = load(gate_up + all + i), grad = load(hidden_g + i);
    vec open = sigmoid(gate), silu = gate * open;
    store(hidden + i, silu * u);
    store(gate_up_g + i, grad * u * (open + silu * (1.0f - open)));
    store(gate_up_g + all + i, grad * silu);
  }
  for (i64 i = 0; i < width; i++)
    for (i64 c = 0; c < s.size; c++) turned_hidden[c * width + i] = hidden[i * s.size + c];
  multiply(s.length, width, s.size, rows_of(g, s.size), plain(turned_hidden, width), gw.second, width, true);
  std::memcpy(to, g, s.length * s.size * sizeof(float));
  multiply(s.length, s.size, 2 * width, columns_of(w.first, s.length), plain(gate_up_g, s.size), to, s.size, true);
  for (i64 i = 0; i < 2 * width; i++)
    for (i64 c = 0; c < s.size; c++) turned[c * 2 * width + i] = gate_up_g[i * s.size + c];
  multiply(s.length, 2 * width, s.size, rows_of(x, s.size), plain(turned, 2 * width), gw.first, 2 * width, true);
  arena.back(mark);
}

// g[tokens, D]: gradient of the layer's output -> to: that of its input (another place).
void layer_backward(const Stack& s, const Weights& w, const PackedBack& p, const Gradients& gw, const Kept& k,
                    i64 samples, const float* g, float* to) {
  i64 tokens = samples * s.length, d = s.size, inner = s.inner, mark = arena.mark();
  float *sum_g = arena.take(tokens * d), *h_g = arena.take(tokens * d);
  i64 hidden_row = apart(s, inner), gate_up_row = apart(s, 2 * inner);
  float *hidden_g = arena.take(tokens * inner), *hidden = arena.take(tokens * hidden_row);
  float* gate_up_g = arena.take(tokens * gate_up_row);
  norm_backward(g, k.y, k.scale_y, tokens, d, sum_g);
  product(s, sum_g, d, tokens, d, inner, p.down, hidden_g, false);
  if (s.bf16)
    swiglu_backward<true>(k.gate_up, hidden_g, tokens, inner, hidden, hidden_row, gate_up_g, gate_up_row);
  else
    swiglu_backward<false>(k.gate_up, hidden_g, tokens, inner, hidden, hidden_row, gate_up_g, gate_up_row);
  outer(s, sum_g, d, hidden, hidden_row, inner, tokens, gw.down);
  std::memcpy(h_g, sum_g, tokens * d * sizeof(float));
  product(s, gate_up_g, gate_up_row, tokens, 2 * inner, d, p.gate_up, h_g, true);
  outer(s, k.h, d, gate_up_g, gate_up_row, 2 * inner, tokens, gw.gate_up);
  if (s.mixing == MLP) {
    for (i64 b = 0; b < samples; b++) {
      i64 at = b * s.length * d;
      norm_backward_positions(s, h_g + at, k.h + at, k.scale + b * d, sum_g + at);
      mix_positions_backward(s, w, gw, k.x + at, k.mixed + b * 2 * s.position_inner * d, sum_g + at, to + at);
    }
    return arena.back(mark);
  }
  norm_backward(h_g, k.h, k.scale, tokens, d, sum_g);
  if (s.mixing == CONV) {
    mix_cells_backward(s, p.kernel, w.second, k.x, sum_g, samples, to, gw.first, gw.second);
    for (i64 i = 0; i < tokens * d; i += W) store(to + i, load(to + i) + load(sum_g + i));
    return arena.back(mark);
  }
  AttentionSpace space(s);
  float *attended_g = h_g, *mixed_g = arena.take(tokens * 3 * d), *second = arena.take(s.length * space.padded);
  i64 head = d / s.heads;
  product(s, sum_g, d, tokens, d, d, p.second, attended_g, false);
  outer(s, sum_g, d, k.attended, d, d, tokens, gw.second);
  for (i64 b = 0; b < samples; b++)
    for (i64 h = 0; h < s.heads; h++) {
      i64 at = b * s.length * d + h * head, at3 = b * s.length * 3 * d + h * head;
      attend_backward(s, space, k.mixed + at3, k.attended + at, k.normaliser + b * s.length * s.heads + h, attended_g + at,
                      second, mixed_g + at3);
    }
  turn(s, mixed_g, samples, true);
  outer(s, mixed_g, 3 * d, k.x, d, d, tokens, gw.first);
  std::memcpy(to, sum_g, tokens * d * sizeof(float));
  product(s, mixed_g, 3 * d, tokens, 3 * d, d, p.first, to, true);
  arena.back(mark);
}

}  // namespace
