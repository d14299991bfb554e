// The gate between environment steps: every position mixes what it kept with the latents that an episode begins with.

#pragma once

#include "vectors.h"

namespace {

// Of a policy: row 0 opens z_H's gate and row 1 z_L's, from (z_H, z_L, token).
struct Gate {
  const float *weight, *bias;      // [2, 3 size], [2]
  const float *fresh_h, *fresh_l;  // [size]
  i64 size;
};

struct GateGradients {  // added to
  float *weight, *bias;
};

inline float opening(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// fresh + g (kept - fresh) at every position, over h and l, from the new tokens x[positions, size] and what was kept.
// gates[positions, 2]: how far they are open.
void gate_forward(const Gate& gate, const float* x, const float* kept_h, const float* kept_l, i64 positions, float* h,
                  float* l, float* gates) {
  i64 size = gate.size;
  const float *first = gate.weight, *second = gate.weight + 3 * size;
  for (i64 at = 0; at < positions * size; at += size, gates += 2) {
    vec along_h{}, along_l{};
    for (i64 c = 0; c < size; c += W) {
      vec z_h = load(kept_h + at + c), z_l = load(kept_l + at + c), token = load(x + at + c);
      along_h += z_h * load(first + c) + z_l * load(first + size + c) + token * load(first + 2 * size + c);
      along_l += z_h * load(second + c) + z_l * load(second + size + c) + token * load(second + 2 * size + c);
    }
    float open_h = opening(total(along_h) + gate.bias[0]), open_l = opening(total(along_l) + gate.bias[1]);
    gates[0] = open_h, gates[1] = open_l;
    for (i64 c = 0; c < size; c += W) {
      vec fresh_h = load(gate.fresh_h + c), fresh_l = load(gate.fresh_l + c);
      store(h + at + c, fresh_h + open_h * (load(kept_h + at + c) - fresh_h));
      store(l + at + c, fresh_l + open_l * (load(kept_l + at + c) - fresh_l));
    }
  }
}

// h_g and l_g: gradients of the mixed latents, over which those of the kept ones are written. x_g is added to.
void gate_backward(const Gate& gate, const float* x, const float* kept_h, const float* kept_l, const float* gates,
                   i64 positions, float* h_g, float* l_g, float* x_g, const GateGradients& to) {
  i64 size = gate.size;
  const float *first = gate.weight, *second = gate.weight + 3 * size;
  float *first_g = to.weight, *second_g = to.weight + 3 * size;
  for (i64 at = 0; at < positions * size; at += size, gates += 2) {
    vec along_h{}, along_l{};
    for (i64 c = 0; c < size; c += W) {
      along_h += load(h_g + at + c) * (load(kept_h + at + c) - load(gate.fresh_h + c));
      along_l += load(l_g + at + c) * (load(kept_l + at + c) - load(gate.fresh_l + c));
    }
    float open_h = gates[0], open_l = gates[1];
    float before_h = total(along_h) * open_h * (1.0f - open_h), before_l = total(along_l) * open_l * (1.0f - open_l);
    to.bias[0] += before_h;
    to.bias[1] += before_l;
    auto part = [&](i64 c, const float* value, float* gradient, vec own) {  // columns c of the rows, and what they read
      store(gradient, own + before_h * load(first + c) + before_l * load(second + c));
      store(first_g + c, load(first_g + c) + before_h * load(value));
      store(second_g + c, load(second_g + c) + before_l * load(value));
    };
    for (i64 c = 0; c < size; c += W) {
      part(c, kept_h + at + c, h_g + at + c, open_h * load(h_g + at + c));
      part(size + c, kept_l + at + c, l_g + at + c, open_l * load(l_g + at + c));
      part(2 * size + c, x + at + c, x_g + at + c, load(x_g + at + c));
    }
  }
}

}  // namespace
