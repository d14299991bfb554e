// Products of matrices rounded to bfloat16, with float32 sums.

#pragma once

#include "products.h"

namespace {

// Two bfloat16 numbers of successive inner indices share one 32-bit word; sums are float32.
using pair = uint32_t;

struct Right16 {  // pair p of column j at data[(j / PANEL) * panel + p * row + j % PANEL]
  const pair* data;
  i64 row, panel;
};

struct Left16 {
  const pair* data;
  i64 row, step;
};

inline Left16 rows16(const pair* a, i64 pairs) { return {a, pairs, 1}; }

inline uint16_t bfloat16(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline pair both(float first, float second) {
  return static_cast<pair>(bfloat16(first)) | static_cast<pair>(bfloat16(second)) << 16;
}

#if defined(__AVX512BF16__)
constexpr bool HAS_BFLOAT16 = true;

inline void narrow_row(const float* from, i64 count, uint16_t* to) {  // count a multiple of 16
  for (i64 i = 0; i < count; i += W) {
    __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), reinterpret_cast<__m256i&>(half));
  }
}

template <int M, int N>
inline void tile16(i64 pairs, const pair* a, i64 row, i64 step, const pair* b, i64 b_row, float* c, i64 c_row, bool add) {
  __m512 sums[M][N];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) sums[i][j] = _mm512_setzero_ps();
  for (i64 p = 0; p < pairs; p++) {
    __m512i right[N];
    for (int j = 0; j < N; j++) right[j] = _mm512_loadu_si512(b + p * b_row + j * W);
    for (int i = 0; i < M; i++) {
      __m512i left = _mm512_set1_epi32(static_cast<int>(a[i * row + p * step]));
      for (int j = 0; j < N; j++)
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], reinterpret_cast<__m512bh&>(left), reinterpret_cast<__m512bh&>(right[j]));
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) {
      float* at = c + i * c_row + j * W;
      _mm512_storeu_ps(at, add ? _mm512_add_ps(_mm512_loadu_ps(at), sums[i][j]) : sums[i][j]);
    }
}

template <int N>
inline void tile16_rows(i64 m, i64 pairs, const pair* a, i64 row, i64 step, const pair* b, i64 b_row, float* c,
                        i64 c_row, bool add) {
  switch (m) {
    case 1: return tile16<1, N>(pairs, a, row, step, b, b_row, c, c_row, add);
    case 2: return tile16<2, N>(pairs, a, row, step, b, b_row, c, c_row, add);
    case 3: return tile16<3, N>(pairs, a, row, step, b, b_row, c, c_row, add);
    case 4: return tile16<4, N>(pairs, a, row, step, b, b_row, c, c_row, add);
    case 5: return tile16<5, N>(pairs, a, row, step, b, b_row, c, c_row, add);
    default: return tile16<6, N>(pairs, a, row, step, b, b_row, c, c_row, add);
  }
}

// C[m, n] (+)= A[m, 2 pairs] B[2 pairs, n]; pair p of row i of A at a.data[i * a.row + p * a.step].
void multiply16(i64 m, i64 n, i64 pairs, Left16 a, Right16 b, float* c, i64 c_row, bool add = false) {
  for (i64 j = 0; j < n; j += VECTORS * W) {
    const pair* right = b.data + j / PANEL * b.panel + j % PANEL;
    i64 vectors = least(VECTORS, (n - j) / W);
    for (i64 i = 0; i < m; i += ROWS) {
      const pair* left = a.data + i * a.row;
      float* at = c + i * c_row + j;
      i64 count = least(ROWS, m - i);
      switch (vectors) {
        case 1: tile16_rows<1>(count, pairs, left, a.row, a.step, right, b.row, at, c_row, add); break;
        case 2: tile16_rows<2>(count, pairs, left, a.row, a.step, right, b.row, at, c_row, add); break;
        case 3: tile16_rows<3>(count, pairs, left, a.row, a.step, right, b.row, at, c_row, add); break;
        default: tile16_rows<4>(count, pairs, left, a.row, a.step, right, b.row, at, c_row, add); break;
      }
    }
  }
}

// Rows 2p and 2p + 1 of b[rows, columns] paired: [ceil(rows / 2), columns]; columns a multiple of 16.
void pair_rows(const float* b, i64 rows, i64 columns, pair* to) {
  for (i64 p = 0; p < (rows + 1) / 2; p++)
    for (i64 c = 0; c < columns; c += W) {
      const float* first = b + 2 * p * columns + c;
      __m256bh low = _mm512_cvtneps_pbh(_mm512_loadu_ps(first));
      __m512i words = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i&>(low));
      if (2 * p + 1 < rows) {
        __m256bh high = _mm512_cvtneps_pbh(_mm512_loadu_ps(first + columns));
        words = _mm512_or_si512(words, _mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i&>(high)), 16));
      }
      _mm512_storeu_si512(to + p * columns + c, words);
    }
}
#else
constexpr bool HAS_BFLOAT16 = false;
inline void narrow_row(const float*, i64, uint16_t*) {}
void multiply16(i64, i64, i64, Left16, Right16, float*, i64, bool = false) {}
void pair_rows(const float*, i64, i64, pair*) {}
#endif

// Pairs of the transpose of b[columns, inner]; inner even.
Right16 pack16_transposed(const float* b, i64 inner, i64 columns, i64 b_row, pair* to) {
  i64 pairs = inner / 2;
  for (i64 j = 0; j < columns; j += PANEL)
    for (i64 p = 0; p < pairs; p++)
      for (i64 c = 0; c < least(PANEL, columns - j); c++) {
        const float* at = b + (j + c) * b_row + 2 * p;
        to[j * pairs + p * PANEL + c] = both(at[0], at[1]);
      }
  return {to, PANEL, pairs * PANEL};
}

// Pairs of rows of b[inner, columns]; an odd last row is paired with zeros.
Right16 pack16_rows(const float* b, i64 inner, i64 columns, i64 b_row, pair* to) {
  i64 pairs = (inner + 1) / 2;
  for (i64 j = 0; j < columns; j += PANEL) {
    i64 count = least(PANEL, columns - j);
    for (i64 p = 0; p < pairs; p++) {
      const float *first = b + 2 * p * b_row + j, *second = first + b_row;
      pair* at = to + j * pairs + p * PANEL;
      if (2 * p + 1 < inner)
        for (i64 c = 0; c < count; c++) at[c] = both(first[c], second[c]);
      else
        for (i64 c = 0; c < count; c++) at[c] = both(first[c], 0.0f);
    }
  }
  return {to, PANEL, pairs * PANEL};
}

}  // namespace
