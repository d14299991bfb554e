// Products of float32 matrices, in tiles of sums that stay in registers.

#pragma once

#include <array>
#include <utility>

#include "vectors.h"

namespace {

// Left-hand matrix: element (i, p) at data[i * row + p * step].
struct Left {
  const float* data;
  i64 row, step;
};

// Right-hand matrix: element (p, j) at data[(j / PANEL) * panel + p * row + j % PANEL].
struct Right {
  const float* data;
  i64 row, panel;
};

inline Left rows_of(const float* a, i64 columns) { return {a, columns, 1}; }
inline Left columns_of(const float* a, i64 columns) { return {a, 1, columns}; }
inline Right plain(const float* b, i64 columns) { return {b, columns, PANEL}; }
inline i64 packed_size(i64 inner, i64 columns) { return inner * up(columns, PANEL); }

// B[inner, columns] given by its rows.
Right pack_rows(const float* b, i64 inner, i64 columns, float* to) {
  for (i64 j = 0; j < columns; j += PANEL)
    for (i64 p = 0; p < inner; p++)
      std::memcpy(to + j * inner + p * PANEL, b + p * columns + j, least(PANEL, columns - j) * sizeof(float));
  return {to, PANEL, inner * PANEL};
}

// The transpose of b[columns, inner].
Right pack_transposed(const float* b, i64 inner, i64 columns, float* to) {
  for (i64 j = 0; j < columns; j += PANEL)
    for (i64 p = 0; p < inner; p++)
      for (i64 c = 0; c < least(PANEL, columns - j); c++) to[j * inner + p * PANEL + c] = b[(j + c) * inner + p];
  return {to, PANEL, inner * PANEL};
}

// Unrolled: sums in an array that is indexed at run time would be kept in memory.
template <int M, int N>
void tile(i64 inner, const float* a, i64 row, i64 step, const float* b, i64 b_row, float* c, i64 c_row, bool add) {
  vec sums[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sums[i][j] = vec{};
  for (i64 p = 0; p < inner; p++) {
    vec right[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) right[j] = load(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      float left = a[i * row];
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) sums[i][j] += left * right[j];
    }
    a += step;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
      float* at = c + i * c_row + j * W;
      store(at, add ? load(at) + sums[i][j] : sums[i][j]);
    }
}

// tile<M, N> at [(M - 1) * VECTORS + N - 1].
using Tile = void (*)(i64, const float*, i64, i64, const float*, i64, float*, i64, bool);
template <int... I>
constexpr std::array<Tile, sizeof...(I)> all_tiles(std::integer_sequence<int, I...>) {
  return {tile<I / VECTORS + 1, I % VECTORS + 1>...};
}
constexpr auto TILES = all_tiles(std::make_integer_sequence<int, ROWS * VECTORS>());

// C[m, n] (+)= A[m, inner] B[inner, n]; n a multiple of W.
void multiply(i64 m, i64 n, i64 inner, Left a, Right b, float* c, i64 c_row, bool add = false) {
  for (i64 j = 0; j < n; j += VECTORS * W) {
    const float* right = b.data + j / PANEL * b.panel + j % PANEL;
    i64 vectors = least(VECTORS, (n - j) / W);
    for (i64 i = 0; i < m; i += ROWS) {
      i64 rows = least(ROWS, m - i);
      TILES[(rows - 1) * VECTORS + vectors - 1](inner, a.data + i * a.row, a.row, a.step, right, b.row, c + i * c_row + j,
                                                c_row, add);
    }
  }
}

}  // namespace
