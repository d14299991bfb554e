// Products of float32 matrices, in tiles of sums that stay in registers.

#pragma once

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

template <int M, int N>
inline void tile(i64 inner, const float* a, i64 row, i64 step, const float* b, i64 b_row, float* c, i64 c_row, bool add) {
  vec sums[M][N] = {};
  for (i64 p = 0; p < inner; p++) {
    vec right[N];
    for (int j = 0; j < N; j++) right[j] = load(b + p * b_row + j * W);
    for (int i = 0; i < M; i++) {
      float left = a[i * row + p * step];
      for (int j = 0; j < N; j++) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) {
      float* at = c + i * c_row + j * W;
      store(at, add ? load(at) + sums[i][j] : sums[i][j]);
    }
}

template <int N>
inline void tile_rows(i64 m, i64 inner, const float* a, i64 row, i64 step, const float* b, i64 b_row, float* c,
                      i64 c_row, bool add) {
  switch (m) {
    case 1: return tile<1, N>(inner, a, row, step, b, b_row, c, c_row, add);
    case 2: return tile<2, N>(inner, a, row, step, b, b_row, c, c_row, add);
    case 3: return tile<3, N>(inner, a, row, step, b, b_row, c, c_row, add);
    case 4: return tile<4, N>(inner, a, row, step, b, b_row, c, c_row, add);
#if defined(__AVX512F__)
    case 5: return tile<5, N>(inner, a, row, step, b, b_row, c, c_row, add);
    default: return tile<6, N>(inner, a, row, step, b, b_row, c, c_row, add);
#endif
  }
}

// C[m, n] (+)= A[m, inner] B[inner, n]; n a multiple of 16.
void multiply(i64 m, i64 n, i64 inner, Left a, Right b, float* c, i64 c_row, bool add = false) {
  for (i64 j = 0; j < n; j += VECTORS * W) {
    const float* right = b.data + j / PANEL * b.panel + j % PANEL;
    i64 vectors = least(VECTORS, (n - j) / W);
    for (i64 i = 0; i < m; i += ROWS) {
      const float* left = a.data + i * a.row;
      float* at = c + i * c_row + j;
      i64 count = least(ROWS, m - i);
      switch (vectors) {
        case 1: tile_rows<1>(count, inner, left, a.row, a.step, right, b.row, at, c_row, add); break;
#if defined(__AVX512F__)
        case 2: tile_rows<2>(count, inner, left, a.row, a.step, right, b.row, at, c_row, add); break;
        case 3: tile_rows<3>(count, inner, left, a.row, a.step, right, b.row, at, c_row, add); break;
        default: tile_rows<4>(count, inner, left, a.row, a.step, right, b.row, at, c_row, add); break;
#endif
      }
    }
  }
}

}  // namespace
