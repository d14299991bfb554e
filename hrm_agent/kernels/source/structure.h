// What describes a stack, what a layer keeps for its backward, and the operations between matrix products.

#pragma once

#include "bfloat16.h"

namespace {

enum Mixing { CONV = 0, ATTENTION = 1, MLP = 2 };

}  // namespace

extern "C" {

// What hrm_agent/kernels/stack.py describes as `Shape`; sizes in numbers of floats.
struct Stack {
  i64 mixing, layers, batch, length, size, inner;
  i64 rows, cols;        // of the grid, CONV; the tokens before it are the rest of the length
  i64 heads;             // ATTENTION
  i64 position_inner;    // width of the SwiGLU over positions, MLP
  i64 bf16;              // products in bfloat16
  i64 causal;            // ATTENTION: of a token to itself and those before it
  float epsilon;
  const float *cos, *sin;        // [length, size / heads] or null
  const float* const* weights;   // per layer: the mixing's two (CONV: or one, see Weights), then gate_up and down
};

}  // extern "C"

namespace {

struct Weights {  // CONV: first null without a grid, second null without tokens before it
  const float *first, *second, *gate_up, *down;
};

bool has_first(const Stack& s) { return s.mixing != CONV || s.rows * s.cols; }
bool has_second(const Stack& s) { return s.mixing != CONV || s.length > s.rows * s.cols; }
i64 weights_count(const Stack& s) { return s.layers * (has_first(s) + has_second(s) + 2); }

// One layer's of a list: Weights, or pointers to their gradients.
template <typename Set, typename Pointer>
Set layer_of(const Stack& s, Pointer const* all, i64 layer) {
  bool first = has_first(s), second = has_second(s);
  Pointer const* w = all + layer * (first + second + 2);
  return {first ? w[0] : nullptr, second ? w[first] : nullptr, w[first + second], w[first + second + 1]};
}

Weights weights_of(const Stack& s, i64 layer) { return layer_of<Weights>(s, s.weights, layer); }

// What a layer's forward computes and its backward needs, of some tokens.
struct Kept {
  float *x;               // [tokens, D] the input
  float *mixed;           // ATTENTION: queries, keys and values [tokens, 3D]; MLP: [samples, 2 P, D]
  float *attended;        // ATTENTION: what attention gave, before its output matrix [tokens, D]
  float *normaliser;      // ATTENTION: log of the sum of exponentials [tokens, heads]
  float *h, *scale;       // [tokens, D] after the first norm; what it divided by: [tokens], MLP [samples, D]
  float *gate_up;         // [tokens, 2 I]
  float *y, *scale_y;     // [tokens, D] the output, [tokens]
};

i64 kept_size(const Stack& s, i64 samples) {
  i64 tokens = samples * s.length;
  i64 size = 2 * up(tokens * s.size, LINE) + up(tokens * 2 * s.inner, LINE) + up(tokens, LINE);
  if (s.mixing == MLP) return size + up(samples * s.size, LINE) + up(samples * 2 * s.position_inner * s.size, LINE);
  size += up(tokens, LINE);
  if (s.mixing == ATTENTION) size += up(tokens * 3 * s.size, LINE) + up(tokens * s.size, LINE) + up(tokens * s.heads, LINE);
  return size;
}

// The part of `samples` samples from `first` on, in a layer's memory laid out for `of` samples.
Kept kept_at(const Stack& s, float* base, i64 of, i64 first) {
  Kept k{};
  i64 tokens = of * s.length, at = first * s.length;
  auto take = [&](i64 all, i64 skip) {
    float* p = base + skip;
    base += up(all, LINE);
    return p;
  };
  k.h = take(tokens * s.size, at * s.size);
  k.y = take(tokens * s.size, at * s.size);
  k.gate_up = take(tokens * 2 * s.inner, at * 2 * s.inner);
  k.scale_y = take(tokens, at);
  if (s.mixing == MLP) {
    k.scale = take(of * s.size, first * s.size);
    i64 each = 2 * s.position_inner * s.size;
    k.mixed = take(of * each, first * each);
    return k;
  }
  k.scale = take(tokens, at);
  if (s.mixing == ATTENTION) {
    k.mixed = take(tokens * 3 * s.size, at * 3 * s.size);
    k.attended = take(tokens * s.size, at * s.size);
    k.normaliser = take(tokens * s.heads, at * s.heads);
  }
  return k;
}

// y = (a + b) / rms(a + b) per token; scale: what it was multiplied by.
void add_and_norm(const float* a, const float* b, i64 tokens, i64 size, float epsilon, float* y, float* scale) {
  for (i64 t = 0; t < tokens; t++) {
    vec squares{};
    for (i64 c = 0; c < size; c += W) {
      vec sum = load(a + t * size + c) + load(b + t * size + c);
      store(y + t * size + c, sum);
      squares += sum * sum;
    }
    float s = 1.0f / std::sqrt(total(squares) / size + epsilon);
    scale[t] = s;
    for (i64 c = 0; c < size; c += W) store(y + t * size + c, load(y + t * size + c) * s);
  }
}

// Gradient of the sum before a norm: s (g - y mean(g y)); may be written over g.
void norm_backward(const float* g, const float* y, const float* scale, i64 tokens, i64 size, float* to) {
  for (i64 t = 0; t < tokens; t++) {
    vec along{};
    for (i64 c = 0; c < size; c += W) along += load(g + t * size + c) * load(y + t * size + c);
    float mean = total(along) / size, s = scale[t];
    for (i64 c = 0; c < size; c += W)
      store(to + t * size + c, (load(g + t * size + c) - load(y + t * size + c) * mean) * s);
  }
}

void swiglu(const float* gate_up, i64 rows, i64 inner, float* to) {
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < inner; c += W) {
      vec gate = load(gate_up + r * 2 * inner + c);
      store(to + r * inner + c, gate * sigmoid(gate) * load(gate_up + r * 2 * inner + inner + c));
    }
}

#if defined(__AVX512BF16__)
void swiglu16(const float* gate_up, i64 rows, i64 inner, uint16_t* to) {
  float line[W];
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < inner; c += W) {
      vec gate = load(gate_up + r * 2 * inner + c);
      store(line, gate * sigmoid<true>(gate) * load(gate_up + r * 2 * inner + inner + c));
      narrow_row(line, W, to + r * inner + c);
    }
}
#else
void swiglu16(const float*, i64, i64, uint16_t*) {}
#endif

// Gradients of gate and up from that of silu(gate) up, and the product itself once more; rows of both results lie
// hidden_row and to_row floats apart.
template <bool ROUGH>
void swiglu_backward(const float* gate_up, const float* g, i64 rows, i64 inner, float* hidden, i64 hidden_row, float* to,
                     i64 to_row) {
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < inner; c += W) {
      vec gate = load(gate_up + r * 2 * inner + c), u = load(gate_up + r * 2 * inner + inner + c);
      vec grad = load(g + r * inner + c), open = sigmoid<ROUGH>(gate), silu = gate * open;
      store(hidden + r * hidden_row + c, silu * u);
      store(to + r * to_row + c, grad * u * (open + silu * (1.0f - open)));
      store(to + r * to_row + inner + c, grad * silu);
    }
}

}  // namespace
