// What the kernels use of AVX-512, in plain C++, so that their code for it is tested on any x86 processor.
//
// Included before the sources (-include). Sums of a product of bfloat16 pairs are rounded once less than by the
// processor, and the reciprocal is exact.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace software {

template <class To, class From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Vector, class Number>
inline Vector loaded(const Number* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

struct Floats { float at[16]; };
struct Words { uint32_t at[16]; };
struct Halves { uint16_t at[16]; };

inline float widened(uint16_t x) { return as<float>(static_cast<uint32_t>(x) << 16); }

inline uint16_t narrowed(float x) {  // to nearest, ties to even
  uint32_t bits = as<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float reduce_add(__m512 v) {
  Floats f = as<Floats>(v);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) f.at[i] += f.at[i + half];
  return f.at[0];
}

inline float reduce_max(__m512 v) {
  Floats f = as<Floats>(v);
  for (int i = 1; i < 16; i++) f.at[0] = f.at[0] > f.at[i] ? f.at[0] : f.at[i];
  return f.at[0];
}

inline __m512 round(__m512 v) {
  Floats f = as<Floats>(v);
  for (float& x : f.at) x = std::nearbyint(x);
  return as<__m512>(f);
}

inline __m512 scale(__m512 v, __m512 by) {
  Floats f = as<Floats>(v), n = as<Floats>(by);
  for (int i = 0; i < 16; i++) f.at[i] = std::ldexp(f.at[i], static_cast<int>(std::floor(n.at[i])));
  return as<__m512>(f);
}

inline __m512 reciprocal(__m512 v) {
  Floats f = as<Floats>(v);
  for (float& x : f.at) x = 1.0f / x;
  return as<__m512>(f);
}

inline __m256bh narrow(__m512 v) {
  Floats f = as<Floats>(v);
  Halves h;
  for (int i = 0; i < 16; i++) h.at[i] = narrowed(f.at[i]);
  return as<__m256bh>(h);
}

inline __m512 dot(__m512 sums, __m512bh a, __m512bh b) {
  Floats s = as<Floats>(sums);
  Words left = as<Words>(a), right = as<Words>(b);
  for (int i = 0; i < 16; i++) {
    uint32_t l = left.at[i], r = right.at[i];
    s.at[i] += widened(static_cast<uint16_t>(l >> 16)) * widened(static_cast<uint16_t>(r >> 16));
    s.at[i] += widened(static_cast<uint16_t>(l)) * widened(static_cast<uint16_t>(r));
  }
  return as<__m512>(s);
}

inline __m512i widen(__m256i v) {
  Halves h = as<Halves>(v);
  Words w;
  for (int i = 0; i < 16; i++) w.at[i] = h.at[i];
  return as<__m512i>(w);
}

inline __m512i either(__m512i a, __m512i b) {
  Words left = as<Words>(a), right = as<Words>(b);
  for (int i = 0; i < 16; i++) left.at[i] |= right.at[i];
  return as<__m512i>(left);
}

inline __m512i shifted(__m512i v, int by) {
  Words w = as<Words>(v);
  for (uint32_t& x : w.at) x <<= by;
  return as<__m512i>(w);
}

inline __m512i everywhere(int x) {
  Words w;
  for (uint32_t& word : w.at) word = static_cast<uint32_t>(x);
  return as<__m512i>(w);
}

inline __m512 sum(__m512 a, __m512 b) {
  Floats left = as<Floats>(a), right = as<Floats>(b);
  for (int i = 0; i < 16; i++) left.at[i] += right.at[i];
  return as<__m512>(left);
}

}  // namespace software

#define _mm512_reduce_add_ps(v) software::reduce_add(v)
#define _mm512_reduce_max_ps(v) software::reduce_max(v)
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(v, how) software::round(v)
#define _mm512_scalef_ps(v, by) software::scale(v, by)
#define _mm512_rcp14_ps(v) software::reciprocal(v)
#define _mm512_cvtneps_pbh(v) software::narrow(v)
#define _mm512_dpbf16_ps(sums, a, b) software::dot(sums, a, b)
#define _mm512_cvtepu16_epi32(v) software::widen(v)
#define _mm512_or_si512(a, b) software::either(a, b)
#undef _mm512_slli_epi32
#define _mm512_slli_epi32(v, by) software::shifted(v, by)
#define _mm512_set1_epi32(x) software::everywhere(x)
#define _mm512_setzero_ps() software::as<__m512>(software::Floats{})
#define _mm512_add_ps(a, b) software::sum(a, b)
#define _mm512_loadu_ps(p) software::loaded<__m512>(p)
#define _mm512_loadu_si512(p) software::loaded<__m512i>(p)
#define _mm512_storeu_ps(p, v) std::memcpy(p, &static_cast<const __m512&>(v), 64)
#define _mm512_storeu_si512(p, v) std::memcpy(p, &static_cast<const __m512i&>(v), 64)
#define _mm256_storeu_si256(p, v) std::memcpy(p, &static_cast<const __m256i&>(v), 32)

#define __AVX512F__ 1
#if !defined(WITHOUT_BFLOAT16)
#define __AVX512BF16__ 1
#endif
