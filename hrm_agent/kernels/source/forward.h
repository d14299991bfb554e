// One layer forward.

#pragma once

#include "attention.h"
#include "pooled.h"

namespace {

// A layer's weights as the products want them.
struct Packed {
  const float* kernel;
  Right first, second, gate_up, down;
  Right16 first16, second16, gate_up16, down16;
  const pair *position_gate_up, *position_down;  // MLP in bfloat16: left-hand
};

i64 packed_floats(const Stack& s) {
  i64 size = packed_size(s.size, 2 * s.inner) + packed_size(s.inner, s.size);
  if (s.mixing == CONV) size += up(KERNELS * s.size, LINE);
  if (s.mixing == ATTENTION) size += packed_size(s.size, 3 * s.size) + packed_size(s.size, s.size);
  if (s.mixing == MLP) size += up(s.position_inner * 2 * up(s.length, 2), LINE) + up(s.length * s.position_inner, LINE);
  return size + 8 * LINE;
}

const pair* pack16_left(const float* a, i64 rows, i64 inner) {
  i64 pairs = (inner + 1) / 2;
  pair* to = reinterpret_cast<pair*>(arena.take(rows * pairs));
  for (i64 r = 0; r < rows; r++)
    for (i64 p = 0; p < pairs; p++)
      to[r * pairs + p] = both(a[r * inner + 2 * p], 2 * p + 1 < inner ? a[r * inner + 2 * p + 1] : 0.0f);
  return to;
}

Packed pack(const Stack& s, i64 layer) {
  Weights w = weights_of(s, layer);
  Packed p{};
  auto right = [&](const float* weight, i64 inner, i64 columns, Right& to, Right16& to16) {
    float* space = arena.take(packed_size(inner, columns));
    if (s.bf16)
      to16 = pack16_transposed(weight, inner, columns, inner, reinterpret_cast<pair*>(space));
    else
      to = pack_transposed(weight, inner, columns, space);
  };
  right(w.gate_up, s.size, 2 * s.inner, p.gate_up, p.gate_up16);
  right(w.down, s.inner, s.size, p.down, p.down16);
  if (s.mixing == CONV && !w.first) return p;
  if (s.mixing == CONV) {
    float* kernel = arena.take(KERNELS * s.size);
    turn_kernel(w.first, s.size, kernel);
    p.kernel = kernel;
  } else if (s.mixing == ATTENTION) {
    right(w.first, s.size, 3 * s.size, p.first, p.first16);
    right(w.second, s.size, s.size, p.second, p.second16);
  } else if (s.bf16) {
    p.position_gate_up = pack16_left(w.first, 2 * s.position_inner, s.length);
    p.position_down = pack16_left(w.second, s.length, s.position_inner);
  }
  return p;
}

i64 samples_at_once(const Stack& s) { return least(s.batch, CHUNK_TOKENS / s.length > 1 ? CHUNK_TOKENS / s.length : 1); }

// Room for the pairs of one sample's right-hand matrices in mixing over positions.
i64 positions_right(const Stack& s) {
  i64 longest = s.length > s.position_inner ? s.length : s.position_inner;
  return (longest + 1) / 2 * up(s.size, PANEL);
}

i64 forward_floats(const Stack& s, i64 samples) {
  i64 tokens = samples * s.length;
  i64 size = up(tokens * s.size, LINE) + up(tokens * s.inner, LINE) + up(tokens * s.size, LINE) + 16 * LINE;
  if (s.mixing == ATTENTION) size += AttentionSpace::size(s) + 8 * LINE;
  if (s.mixing == MLP) size += up(s.position_inner * s.size, LINE) + positions_right(s) + up(s.length * s.size, LINE);
  return size;
}

// x W^T for tokens x[tokens, inner], in the precision of the stack. narrow: room for x in bfloat16.
void project(const Stack& s, const float* x, i64 tokens, i64 inner, i64 columns, Right w, Right16 w16, float* narrow, float* to) {
  if (!s.bf16) return multiply(tokens, columns, inner, rows_of(x, inner), w, to, columns);
  narrow_row(x, tokens * inner, reinterpret_cast<uint16_t*>(narrow));
  multiply16(tokens, columns, inner / 2, rows16(reinterpret_cast<pair*>(narrow), inner / 2), w16, to, columns);
}

// One sample's SwiGLU over positions: x[length, D] -> to[length, D]; gate_up[2 P, D] is kept.
void mix_positions(const Stack& s, const Weights& w, const Packed& p, const float* x, float* gate_up, float* hidden,
                   float* right, float* to) {
  i64 width = s.position_inner;
  const float* up_rows = gate_up + width * s.size;
  if (s.bf16) {
    Right16 b = pack16_rows(x, s.length, s.size, s.size, reinterpret_cast<pair*>(right));
    i64 pairs = (s.length + 1) / 2;
    multiply16(2 * width, s.size, pairs, rows16(p.position_gate_up, pairs), b, gate_up, s.size);
  } else {
    multiply(2 * width, s.size, s.length, rows_of(w.first, s.length), plain(x, s.size), gate_up, s.size);
  }
  for (i64 i = 0; i < width * s.size; i += W) {
    vec gate = load(gate_up + i);
    store(hidden + i, gate * sigmoid(gate) * load(up_rows + i));
  }
  if (s.bf16) {
    Right16 b = pack16_rows(hidden, width, s.size, s.size, reinterpret_cast<pair*>(right));
    i64 pairs = (width + 1) / 2;
    multiply16(s.length, s.size, pairs, rows16(p.position_down, pairs), b, to, s.size);
  } else {
    multiply(s.length, s.size, width, rows_of(w.second, width), plain(hidden, s.size), to, s.size);
  }
}

// As add_and_norm, but the mean is over a sample's positions, for each channel.
void add_and_norm_positions(const Stack& s, const float* a, const float* b, float* y, float* scale) {
  for (i64 c = 0; c < s.size; c += W) {
    vec squares{};
    for (i64 t = 0; t < s.length; t++) {
      vec sum = load(a + t * s.size + c) + load(b + t * s.size + c);
      store(y + t * s.size + c, sum);
      squares += sum * sum;
    }
    vec mean = squares / static_cast<float>(s.length) + s.epsilon, factor;
    for (i64 i = 0; i < W; i++) factor[i] = 1.0f / std::sqrt(mean[i]);
    store(scale + c, factor);
    for (i64 t = 0; t < s.length; t++) store(y + t * s.size + c, load(y + t * s.size + c) * factor);
  }
}

void layer_forward(const Stack& s, const Weights& w, const Packed& p, const Kept& k, i64 samples, bool keep) {
  i64 tokens = samples * s.length, mark = arena.mark();
  float* branch = arena.take(tokens * s.size);
  float* narrow = arena.take(tokens * s.inner);
  float* narrow_x = arena.take(tokens * s.size);
  if (s.mixing == CONV) {
    mix_cells(s, p.kernel, w.second, k.x, samples, branch);
    add_and_norm(k.x, branch, tokens, s.size, s.epsilon, k.h, k.scale);
  } else if (s.mixing == ATTENTION) {
    AttentionSpace space(s);
    i64 head = s.size / s.heads;
    project(s, k.x, tokens, s.size, 3 * s.size, p.first, p.first16, narrow_x, k.mixed);
    turn(s, k.mixed, samples, false);
    for (i64 b = 0; b < samples; b++)
      for (i64 h = 0; h < s.heads; h++)
        attend(s, space, k.mixed + b * s.length * 3 * s.size + h * head, k.attended + b * s.length * s.size + h * head,
               keep ? k.normaliser + b * s.length * s.heads + h : nullptr);
    project(s, k.attended, tokens, s.size, s.size, p.second, p.second16, narrow_x, branch);
    add_and_norm(k.x, branch, tokens, s.size, s.epsilon, k.h, k.scale);
  } else {
    float* hidden = arena.take(s.position_inner * s.size);
    float* right = arena.take(positions_right(s));
    float* mixed = arena.take(s.length * s.size);
    for (i64 b = 0; b < samples; b++) {
      const float* x = k.x + b * s.length * s.size;
      mix_positions(s, w, p, x, k.mixed + b * 2 * s.position_inner * s.size, hidden, right, mixed);
      add_and_norm_positions(s, x, mixed, k.h + b * s.length * s.size, k.scale + b * s.size);
    }
  }
  project(s, k.h, tokens, s.size, 2 * s.inner, p.gate_up, p.gate_up16, narrow_x, k.gate_up);
  if (s.bf16) {
    swiglu16(k.gate_up, tokens, s.inner, reinterpret_cast<uint16_t*>(narrow));
    multiply16(tokens, s.size, s.inner / 2, rows16(reinterpret_cast<pair*>(narrow), s.inner / 2), p.down16, branch, s.size);
  } else {
    swiglu(k.gate_up, tokens, s.inner, narrow);
    multiply(tokens, s.size, s.inner, rows_of(narrow, s.inner), p.down, branch, s.size);
  }
  add_and_norm(k.h, branch, tokens, s.size, s.epsilon, k.y, k.scale_y);
  arena.back(mark);
}

}  // namespace
