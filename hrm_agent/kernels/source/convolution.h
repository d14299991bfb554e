// Mixing by a depthwise 3x3 convolution.

#pragma once

#include "structure.h"

namespace {

// weight[size, 3, 3] -> [9, size]
void turn_kernel(const float* weight, i64 size, float* to) {
  for (i64 c = 0; c < size; c++)
    for (i64 k = 0; k < KERNELS; k++) to[k * size + c] = weight[c * KERNELS + k];
}

// Depthwise 3x3 over each sample's grid; what lies outside counts as zero. `mirror`: its transpose.
void convolve(const Stack& s, const float* x, const float* kernel, i64 samples, bool mirror, float* to) {
  for (i64 b = 0; b < samples; b++)
    for (i64 r = 0; r < s.rows; r++)
      for (i64 q = 0; q < s.cols; q++) {
        i64 here = b * s.length + r * s.cols + q;
        for (i64 c = 0; c < s.size; c += W) {
          vec sum{};
          for (i64 dr = -1; dr <= 1; dr++) {
            if (r + dr < 0 || r + dr >= s.rows) continue;
            for (i64 dq = -1; dq <= 1; dq++) {
              if (q + dq < 0 || q + dq >= s.cols) continue;
              i64 k = mirror ? (1 - dr) * 3 + 1 - dq : (dr + 1) * 3 + dq + 1;
              sum += load(kernel + k * s.size + c) * load(x + (here + dr * s.cols + dq) * s.size + c);
            }
          }
          store(to + here * s.size + c, sum);
        }
      }
}

// kernel gradient [9, size] += sum over cells of g(cell) x(cell + offset)
void convolve_weight(const Stack& s, const float* x, const float* g, i64 samples, float* to) {
  for (i64 c = 0; c < s.size; c += W) {
    vec sums[KERNELS];
    for (i64 k = 0; k < KERNELS; k++) sums[k] = load(to + k * s.size + c);
    for (i64 b = 0; b < samples; b++)
      for (i64 r = 0; r < s.rows; r++)
        for (i64 q = 0; q < s.cols; q++) {
          i64 here = b * s.length + r * s.cols + q;
          vec grad = load(g + here * s.size + c);
          for (i64 dr = -1; dr <= 1; dr++) {
            if (r + dr < 0 || r + dr >= s.rows) continue;
            for (i64 dq = -1; dq <= 1; dq++) {
              if (q + dq < 0 || q + dq >= s.cols) continue;
              sums[(dr + 1) * 3 + dq + 1] += grad * load(x + (here + dr * s.cols + dq) * s.size + c);
            }
          }
        }
    for (i64 k = 0; k < KERNELS; k++) store(to + k * s.size + c, sums[k]);
  }
}

}  // namespace
