// Mixing by a depthwise 3x3 convolution.

#pragma once

#include "structure.h"

namespace {

// weight[size, 3, 3] -> [9, size]
void turn_kernel(const float* weight, i64 size, float* to) {
  for (i64 c = 0; c < size; c++)
    for (i64 k = 0; k < KERNELS; k++) to[k * size + c] = weight[c * KERNELS + k];
}

// The neighbours of a cell that lie on the grid: where, as a distance in cells, and which weight belongs to each.
struct Neighbours {
  int count = 0;
  int weight[KERNELS];
  i64 distance[KERNELS];

  Neighbours(const Stack& s, i64 row, i64 col) {
    for (i64 dr = -1; dr <= 1; dr++) {
      if (row + dr < 0 || row + dr >= s.rows) continue;
      for (i64 dq = -1; dq <= 1; dq++) {
        if (col + dq < 0 || col + dq >= s.cols) continue;
        weight[count] = static_cast<int>((dr + 1) * 3 + dq + 1);
        distance[count++] = dr * s.cols + dq;
      }
    }
  }
};

// N vectors of channels of one cell: the sum over its neighbours of weight times input.
template <int N>
inline void convolve_cell(const Neighbours& near, const float* x, const float* kernel, i64 size, bool mirror, float* to) {
  vec sums[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; j++) sums[j] = vec{};
  for (int n = 0; n < near.count; n++) {
    const float* weight = kernel + (mirror ? KERNELS - 1 - near.weight[n] : near.weight[n]) * size;
    const float* from = x + near.distance[n] * size;
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sums[j] += load(weight + j * W) * load(from + j * W);
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; j++) store(to + j * W, sums[j]);
}

// Depthwise 3x3 over each sample's grid; what lies outside counts as zero. `mirror`: its transpose.
void convolve(const Stack& s, const float* x, const float* kernel, i64 samples, bool mirror, float* to) {
  constexpr int FEW = LINE / W, MANY = FEW < 4 ? 4 : FEW;
  for (i64 r = 0; r < s.rows; r++)
    for (i64 q = 0; q < s.cols; q++) {
      Neighbours near(s, r, q);
      for (i64 b = 0; b < samples; b++) {
        i64 here = (b * s.length + r * s.cols + q) * s.size, c = 0;
        for (; c + MANY * W <= s.size; c += MANY * W)
          convolve_cell<MANY>(near, x + here + c, kernel + c, s.size, mirror, to + here + c);
        for (; c < s.size; c += FEW * W)
          convolve_cell<FEW>(near, x + here + c, kernel + c, s.size, mirror, to + here + c);
      }
    }
}

// kernel gradient [9, size] += sum over cells of g(cell) x(cell + offset)
void convolve_weight(const Stack& s, const float* x, const float* g, i64 samples, float* to) {
  for (i64 r = 0; r < s.rows; r++)
    for (i64 q = 0; q < s.cols; q++) {
      Neighbours near(s, r, q);
      i64 cell = (r * s.cols + q) * s.size, sample = s.length * s.size;
      for (int n = 0; n < near.count; n++) {
        const float *from = x + cell + near.distance[n] * s.size, *grad = g + cell;
        float* sum = to + near.weight[n] * s.size;
        for (i64 c = 0; c < s.size; c += LINE) {
          vec sums[LINE / W];
#pragma GCC unroll 8
          for (int j = 0; j < LINE / W; j++) sums[j] = load(sum + c + j * W);
          for (i64 b = 0; b < samples; b++)
#pragma GCC unroll 8
            for (int j = 0; j < LINE / W; j++)
              sums[j] += load(grad + b * sample + c + j * W) * load(from + b * sample + c + j * W);
#pragma GCC unroll 8
          for (int j = 0; j < LINE / W; j++) store(sum + c + j * W, sums[j]);
        }
      }
    }
}

}  // namespace
