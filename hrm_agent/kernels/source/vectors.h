// Vectors of 16 floats, their exponential, and memory of a thread.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

using i64 = int64_t;
constexpr i64 W = 16;            // floats in a vector
constexpr i64 PANEL = 64;        // columns of a packed right-hand matrix that lie together
constexpr i64 CHUNK_TOKENS = 128;
constexpr i64 KERNELS = 9;       // 3 x 3 weights of a convolution

#if defined(__AVX512F__)
constexpr int ROWS = 6, VECTORS = 4;   // a tile of sums: 24 of 32 registers
#else
constexpr int ROWS = 4, VECTORS = 1;   // 16 floats are two registers of AVX2, four of NEON
#endif

typedef float vec __attribute__((vector_size(64)));
typedef float vecu __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t veci __attribute__((vector_size(64)));

inline vec load(const float* p) { return *reinterpret_cast<const vecu*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vecu*>(p) = v; }
inline vec splat(float x) { return vec{} + x; }
inline vec max(vec a, vec b) { return a > b ? a : b; }
inline i64 up(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }
inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

// In halves, not one by one: four additions after each other instead of sixteen.
inline float total(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sums[W];
  store(sums, v);
  for (i64 half = W / 2; half; half /= 2)
    for (i64 i = 0; i < half; i++) sums[i] += sums[i + half];
  return sums[0];
#endif
}

inline float highest_of(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float most = v[0];
  for (i64 i = 1; i < W; i++) most = most > v[i] ? most : v[i];
  return most;
#endif
}

// e^x to an ulp or two (Cephes' polynomial), or, ROUGH, to 1e-5, which bfloat16 does not see. Below -87 about e^-87.
template <bool ROUGH = false>
inline vec exponential(vec x) {
  x = max(x, splat(-87.3f));
#if defined(__AVX512F__)
  vec whole = (vec)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), 8);  // to nearest, without exceptions
#else
  x = x < splat(88.3f) ? x : splat(88.3f);
  vec scaled = x * 1.44269504088896341f;
  veci n = __builtin_convertvector(scaled + (scaled < splat(0.f) ? splat(-0.5f) : splat(0.5f)), veci);
  vec whole = __builtin_convertvector(n, vec);
#endif
  vec p;
  if constexpr (ROUGH) {
    vec r = x - whole * 0.69314718056f;
    p = splat(4.36690211e-2f);
    p = p * r + 1.68686831e-1f;
    p = p * r + 4.99871821e-1f;
    p = p * r + 9.99937892e-1f;
    p = p * r + 1.0f;
  } else {
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
  }
#if defined(__AVX512F__)
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  return p * (vec)((n + 127) << 23);
#endif
}

template <bool ROUGH = false>
inline vec sigmoid(vec x) {
  vec sum = 1.0f + exponential<ROUGH>(-x);
#if defined(__AVX512F__)
  if constexpr (ROUGH) return (vec)_mm512_rcp14_ps((__m512)sum);  // to 6e-5
#endif
  return 1.0f / sum;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Memory of a thread that grows and is kept: a chunk's temporaries are the same pages every time.
class Arena {
 public:
  bool begin(i64 floats) {  // false where there is no memory
    if (floats > size_) {
      data_.reset(static_cast<float*>(std::aligned_alloc(64, up(floats * sizeof(float), 64))));
      size_ = data_ ? floats : 0;
    }
    used_ = 0;
    return floats <= size_;
  }
  float* take(i64 floats) {
    float* p = data_.get() + used_;
    used_ += up(floats, W);
    return p;
  }
  i64 mark() const { return used_; }
  void back(i64 mark) { used_ = mark; }

 private:
  std::unique_ptr<float, Free> data_;
  i64 size_ = 0, used_ = 0;
};

thread_local Arena arena;

}  // namespace
