// Mixing by convolution with prefix tokens, which have no neighbours: their mean is added to all tokens, and the grid's
// mean to them, each with a weight per channel. Without a grid this is all the mixing there is.

#pragma once

#include "convolution.h"

namespace {

vec mean_of(const float* x, i64 tokens, i64 size) {
  vec all{};
  for (i64 t = 0; t < tokens; t++) all += load(x + t * size);
  return all / static_cast<float>(tokens);
}

// x[samples, length, size] -> to. kernel: as turn_kernel gives it, or null without a grid.
// pooled[2, size]: weights of the mean of the tokens before the grid, and of the grid's; null without such tokens.
void mix_cells(const Stack& s, const float* kernel, const float* pooled, const float* x, i64 samples, float* to) {
  i64 before = s.length - s.rows * s.cols, cells = s.rows * s.cols, d = s.size;
  if (kernel) convolve(s, x + before * d, kernel, samples, false, to + before * d);
  if (!pooled) return;
  for (i64 b = 0; b < samples; b++, x += s.length * d, to += s.length * d)
    for (i64 c = 0; c < d; c += W) {
      vec gathered = load(pooled + c) * mean_of(x + c, before, d), all = gathered;
      if (cells) all += load(pooled + d + c) * mean_of(x + before * d + c, cells, d);
      for (i64 t = 0; t < before; t++) store(to + t * d + c, all);
      for (i64 t = before; t < s.length; t++) store(to + t * d + c, load(to + t * d + c) + gathered);
    }
}

// From the gradient g of what mixing gave: that of x -> to, written; those of the weights, added to.
void mix_cells_backward(const Stack& s, const float* kernel, const float* pooled, const float* x, const float* g,
                        i64 samples, float* to, float* kernel_g, float* pooled_g) {
  i64 before = s.length - s.rows * s.cols, cells = s.rows * s.cols, d = s.size;
  if (kernel) {
    convolve(s, g + before * d, kernel, samples, true, to + before * d);
    convolve_weight(s, x + before * d, g + before * d, samples, kernel_g);
  }
  if (!pooled) return;
  for (i64 b = 0; b < samples; b++, x += s.length * d, g += s.length * d, to += s.length * d)
    for (i64 c = 0; c < d; c += W) {
      vec of_before{}, of_cells{};
      for (i64 t = 0; t < before; t++) of_before += load(g + t * d + c);
      vec of_all = of_before;
      for (i64 t = before; t < s.length; t++) of_all += load(g + t * d + c);
      store(pooled_g + c, load(pooled_g + c) + of_all * mean_of(x + c, before, d));
      if (cells) {
        store(pooled_g + d + c, load(pooled_g + d + c) + of_before * mean_of(x + before * d + c, cells, d));
        of_cells = load(pooled + d + c) * of_before / static_cast<float>(cells);
      }
      of_all *= load(pooled + c) / static_cast<float>(before);
      for (i64 t = 0; t < before; t++) store(to + t * d + c, of_all);
      for (i64 t = before; t < s.length; t++) store(to + t * d + c, load(to + t * d + c) + of_cells);
    }
}

}  // namespace
