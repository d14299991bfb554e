// Vectors as wide as the processor's registers, their exponential, and memory of a thread.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

using i64 = int64_t;
constexpr i64 LINE = 16;         // floats of a cache line: sizes are multiples of it, buffers begin at one
constexpr i64 CHUNK_TOKENS = 128;
constexpr i64 KERNELS = 9;       // 3 x 3 weights of a convolution

// W: floats in a vector, those of a register, so that no vector is spilled for its width alone. A tile of ROWS x VECTORS
// sums stays in registers, with VECTORS of the right-hand matrix and one number of the left-hand one beside it.
#if defined(__AVX512F__)
constexpr i64 W = 16;
constexpr int ROWS = 6, VECTORS = 4;   // 24 sums of 32 registers
#elif defined(__AVX__)
constexpr i64 W = 8;
constexpr int ROWS = 6, VECTORS = 2;   // 12 sums of 16 registers
#elif defined(__aarch64__)
constexpr i64 W = 4;
constexpr int ROWS = 6, VECTORS = 4;   // 24 sums of 32 registers
#else
constexpr i64 W = 4;
constexpr int ROWS = 4, VECTORS = 2;   // 8 sums of 16 registers, products before they are added among the rest
#endif

constexpr i64 PANEL = VECTORS * W;  // columns of a packed right-hand matrix that lie together: those of a tile

#if defined(__AVX512BF16__)
constexpr const char* INSTRUCTIONS = "avx512_bf16";
#elif defined(__AVX512F__)
constexpr const char* INSTRUCTIONS = "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
constexpr const char* INSTRUCTIONS = "avx2";
#elif defined(__AVX__)
constexpr const char* INSTRUCTIONS = "avx";
#elif defined(__aarch64__)
constexpr const char* INSTRUCTIONS = "neon";
#else
constexpr const char* INSTRUCTIONS = "plain";
#endif

constexpr int BYTES = W * sizeof(float);
typedef float vec __attribute__((vector_size(BYTES)));
typedef float vecu __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t veci __attribute__((vector_size(BYTES)));

inline vec load(const float* p) { return *reinterpret_cast<const vecu*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vecu*>(p) = v; }
inline vec splat(float x) { return vec{} + x; }
inline i64 up(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }
inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

inline vec max(vec a, vec b) {
#if defined(__AVX__) && !defined(__AVX512F__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// In halves, not one by one: additions after each other are few.
inline float total(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX__)
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
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
  x = max(splat(-87.3f), x);  // in this order a NaN stays one
#if defined(__AVX512F__)
  vec whole = (vec)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), 8);  // to nearest, without exceptions
#else
  x = -max(splat(-88.3f), -x);
  // 1.5 * 2^23 added: what is behind the point is rounded away, and the whole number stands in the last bits.
  vec shifted = x * 1.44269504088896341f + 12582912.0f;
  veci n = (veci)shifted - 0x4b400000;
  vec whole = shifted - 12582912.0f;
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
    used_ += up(floats, LINE);
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
