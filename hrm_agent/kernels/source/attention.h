// Mixing by attention: rotary positions, softmax, one head of one sample at a time.

#pragma once

#include "structure.h"

namespace {

void turn(const Stack& s, float* qk, i64 samples, bool back) {
  if (!s.cos) return;
  i64 head = s.size / s.heads, half = head / 2;
  float sign = back ? -1.0f : 1.0f;
  for (i64 t = 0; t < samples * s.length; t++) {
    const float *cos = s.cos + t % s.length * head, *sin = s.sin + t % s.length * head;
    for (i64 h = 0; h < 2 * s.heads; h++) {
      float *first = qk + t * 3 * s.size + h * head, *second = first + half;
      i64 c = 0;
      for (; c + W <= half; c += W) {
        vec a = load(first + c), b = load(second + c), turned = load(sin + c) * sign;
        store(first + c, a * load(cos + c) - b * turned);
        store(second + c, b * load(cos + c) + a * turned);
      }
      for (; c < half; c++) {
        float a = first[c], b = second[c], turned = sin[c] * sign;
        first[c] = a * cos[c] - b * turned;
        second[c] = b * cos[c] + a * turned;
      }
    }
  }
}

// Keys or values of one head [length, head], rows 3 D apart -> [head, padded], zeros behind.
void transpose_head(const float* from, i64 row, i64 length, i64 head, i64 padded, float* to) {
  for (i64 d = 0; d < head; d++) {
    for (i64 t = 0; t < length; t++) to[d * padded + t] = from[t * row + d];
    for (i64 t = length; t < padded; t++) to[d * padded + t] = 0;
  }
}

// How many tokens, from the first on, a token attends to.
i64 seen_by(const Stack& s, i64 token) { return s.causal ? token + 1 : s.length; }

// Rows of scores -> exponentials of (score - largest) / root; the sums' reciprocals and logarithms.
template <bool ROUGH>
void softmax(const Stack& s, float* scores, i64 padded, float factor, float* reciprocal, float* logarithm) {
  for (i64 t = 0; t < s.length; t++) {
    float* row = scores + t * padded;
    i64 seen = seen_by(s, t);
    for (i64 j = seen; j < padded; j++) row[j] = row[0];
    vec highest = load(row);
    for (i64 j = W; j < padded; j += W) highest = max(highest, load(row + j));
    float top = highest_of(highest);
    for (i64 j = 0; j < padded; j += W) store(row + j, exponential<ROUGH>((load(row + j) - top) * factor));
    for (i64 j = seen; j < padded; j++) row[j] = 0;
    vec sums{};
    for (i64 j = 0; j < padded; j += W) sums += load(row + j);
    float sum = total(sums);
    reciprocal[t] = 1.0f / sum;
    if (logarithm) logarithm[t * s.heads] = top * factor + std::log(sum);
  }
}

struct AttentionSpace {
  float *transposed, *scores, *reciprocal;
  pair *keys = nullptr, *values = nullptr, *queries = nullptr, *weights = nullptr;  // bfloat16
  i64 padded;

  static i64 size(const Stack& s) {
    i64 padded = up(s.length, W), head = s.size / s.heads;
    i64 floats = up(head * padded, LINE) + up(s.length * padded, LINE) + up(s.length, LINE);
    if (!s.bf16) return floats;
    return floats + up(head / 2 * up(padded, PANEL), LINE) + up((padded / 2 + 1) * up(head, PANEL), LINE) +
           up(s.length * head / 2, LINE) + up(s.length * padded / 2, LINE);
  }
  explicit AttentionSpace(const Stack& s) {
    i64 head = s.size / s.heads;
    padded = up(s.length, W);
    transposed = arena.take(head * padded);
    scores = arena.take(s.length * padded);
    reciprocal = arena.take(s.length);
    if (!s.bf16) return;
    keys = reinterpret_cast<pair*>(arena.take(head / 2 * up(padded, PANEL)));
    values = reinterpret_cast<pair*>(arena.take((padded / 2 + 1) * up(head, PANEL)));
    queries = reinterpret_cast<pair*>(arena.take(s.length * head / 2));
    weights = reinterpret_cast<pair*>(arena.take(s.length * padded / 2));
  }
};

// One head of one sample: q, k, v with rows 3 D apart -> out with rows D apart.
void attend(const Stack& s, const AttentionSpace& space, const float* q, float* out, float* normaliser) {
  i64 head = s.size / s.heads, row = 3 * s.size, padded = space.padded;
  const float *k = q + s.size, *v = k + s.size;
  float factor = 1.0f / std::sqrt(static_cast<float>(head));
  if (s.bf16) {
    for (i64 t = 0; t < s.length; t++) narrow_row(q + t * row, head, reinterpret_cast<uint16_t*>(space.queries) + t * head);
    Right16 keys = pack16_transposed(k, head, s.length, row, space.keys);
    multiply16(s.length, padded, head / 2, rows16(space.queries, head / 2), keys, space.scores, padded);
  } else {
    transpose_head(k, row, s.length, head, padded, space.transposed);
    multiply(s.length, padded, head, rows_of(q, row), plain(space.transposed, padded), space.scores, padded);
  }
  if (s.bf16) {
    softmax<true>(s, space.scores, padded, factor, space.reciprocal, normaliser);
    uint16_t* weights = reinterpret_cast<uint16_t*>(space.weights);
    for (i64 t = 0; t < s.length; t++) narrow_row(space.scores + t * padded, padded, weights + t * padded);
    Right16 values = pack16_rows(v, s.length, head, row, space.values);
    multiply16(s.length, head, (s.length + 1) / 2, rows16(space.weights, padded / 2), values, out, s.size);
  } else {
    softmax<false>(s, space.scores, padded, factor, space.reciprocal, normaliser);
    multiply(s.length, head, s.length, rows_of(space.scores, padded), plain(v, row), out, s.size);
  }
  for (i64 t = 0; t < s.length; t++)
    for (i64 c = 0; c < head; c += W) store(out + t * s.size + c, load(out + t * s.size + c) * space.reciprocal[t]);
}

// Gradients of one head's q, k, v (rows 3 D apart) from that of its output (rows D apart).
void attend_backward(const Stack& s, const AttentionSpace& space, const float* q, const float* out,
                     const float* normaliser, const float* g, float* second, float* to) {
  i64 head = s.size / s.heads, row = 3 * s.size, padded = space.padded;
  const float *k = q + s.size, *v = k + s.size;
  float factor = 1.0f / std::sqrt(static_cast<float>(head));
  transpose_head(k, row, s.length, head, padded, space.transposed);
  multiply(s.length, padded, head, rows_of(q, row), plain(space.transposed, padded), space.scores, padded);
  for (i64 t = 0; t < s.length; t++) {
    float* scores = space.scores + t * padded;
    for (i64 j = 0; j < padded; j += W) store(scores + j, exponential(load(scores + j) * factor - normaliser[t * s.heads]));
    for (i64 j = seen_by(s, t); j < padded; j++) scores[j] = 0;
  }
  multiply(s.length, head, s.length, columns_of(space.scores, padded), plain(g, s.size), to + 2 * s.size, row);
  transpose_head(v, row, s.length, head, padded, space.transposed);
  multiply(s.length, padded, head, rows_of(g, s.size), plain(space.transposed, padded), second, padded);
  for (i64 t = 0; t < s.length; t++) {
    vec along{};
    for (i64 c = 0; c < head; c += W) along += load(g + t * s.size + c) * load(out + t * s.size + c);
    float mean = total(along);
    for (i64 j = 0; j < padded; j += W) {
      float* at = second + t * padded + j;
      store(at, load(space.scores + t * padded + j) * (load(at) - mean) * factor);
    }
  }
  multiply(s.length, head, s.length, rows_of(second, padded), plain(k, row), to, row);
  multiply(s.length, head, s.length, columns_of(second, padded), plain(q, row), to + s.size, row);
}

}  // namespace
