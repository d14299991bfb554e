// What lies between the matrix products of a GRU over pooled tokens, forward and backward. The products are BLAS's: their
// matrices are large, and of any size.

#include "vectors.h"

namespace {

// Up to W floats, so that rows may have any length.
inline vec load_some(const float* p, i64 count) {
  if (count >= W) return load(p);
  float line[W] = {};
  std::memcpy(line, p, count * sizeof(float));
  return load(line);
}

inline void store_some(float* p, vec v, i64 count) {
  if (count >= W) return store(p, v);
  float line[W];
  store(line, v);
  std::memcpy(p, line, count * sizeof(float));
}

inline vec as_ones(vec a, vec b) { return a == b ? splat(1.0f) : splat(0.0f); }

}  // namespace

extern "C" {

// tokens[rows, length, size] -> their mean and maximum, pooled[rows, 2 size].
int64_t pool_forward(int64_t rows, int64_t length, int64_t size, const float* tokens, float* pooled) {
  for (i64 b = 0; b < rows; b++, tokens += length * size, pooled += 2 * size)
    for (i64 c = 0; c < size; c += W) {
      i64 n = least(W, size - c);
      vec sum = load_some(tokens + c, n), top = sum;
      for (i64 t = 1; t < length; t++) {
        vec token = load_some(tokens + t * size + c, n);
        sum += token;
        top = max(token, top);
      }
      store_some(pooled + c, sum / static_cast<float>(length), n);
      store_some(pooled + size + c, top, n);
    }
  return 0;
}

// The gradient of the tokens from that of what is pooled; tokens that are equally large share that of the maximum.
// read[rows]: a token each, which has a gradient of its own too, read_g[rows, size]; or null.
int64_t pool_backward(int64_t rows, int64_t length, int64_t size, const float* tokens, const float* pooled,
                      const float* g, const int64_t* read, const float* read_g, float* to) {
  for (i64 b = 0; b < rows; b++) {
    for (i64 c = 0; c < size; c += W) {
      i64 n = least(W, size - c);
      vec top = load_some(pooled + size + c, n), mean_g = load_some(g + c, n) / static_cast<float>(length), ties{};
      for (i64 t = 0; t < length; t++) ties += as_ones(load_some(tokens + t * size + c, n), top);
      vec each = load_some(g + size + c, n) / ties;
      for (i64 t = 0; t < length; t++) {
        vec own = mean_g + as_ones(load_some(tokens + t * size + c, n), top) * each;
        store_some(to + t * size + c, own, n);
      }
      float* at = read ? to + read[b] * size + c : nullptr;
      if (read) store_some(at, load_some(at, n) + load_some(read_g + b * size + c, n), n);
    }
    tokens += length * size, to += length * size, pooled += 2 * size, g += 2 * size;
  }
  return 0;
}

// inputs[rows, 3 size] and products[rows, 3 size]: what the observation and the memory h[rows, size] give the reset
// gate, the update gate and the candidate. products becomes (reset gate, update gate, what the memory gave the
// candidate), which the backward needs, with the candidate[rows, size]. Returns 0.
int64_t gru_forward(int64_t rows, int64_t size, const float* inputs, float* products, const float* h, float* candidate,
                    float* to) {
  for (i64 b = 0; b < rows; b++, inputs += 3 * size, products += 3 * size, h += size, candidate += size, to += size)
    for (i64 c = 0; c < size; c += W) {
      i64 n = least(W, size - c);
      vec reset = sigmoid(load_some(inputs + c, n) + load_some(products + c, n));
      vec update = sigmoid(load_some(inputs + size + c, n) + load_some(products + size + c, n));
      vec before_tanh = load_some(inputs + 2 * size + c, n) + reset * load_some(products + 2 * size + c, n);
      vec made = 2.0f * sigmoid(2.0f * before_tanh) - 1.0f;  // tanh
      store_some(products + c, reset, n);
      store_some(products + size + c, update, n);
      store_some(candidate + c, made, n);
      store_some(to + c, made + update * (load_some(h + c, n) - made), n);
    }
  return 0;
}

// g[rows, size]: gradient of the new memory -> that of the old one, but for what came through the products.
// inputs_g and products_g[rows, 3 size]: gradients of both before the gates; inputs_g is added to where `add`.
int64_t gru_backward(int64_t rows, int64_t size, const float* kept, const float* candidate, const float* h, float* g,
                     float* inputs_g, float* products_g, int64_t add) {
  for (i64 b = 0; b < rows; b++) {
    for (i64 c = 0; c < size; c += W) {
      i64 n = least(W, size - c);
      vec reset = load_some(kept + c, n), update = load_some(kept + size + c, n), made = load_some(candidate + c, n);
      vec grad = load_some(g + c, n), made_g = grad * (1.0f - update) * (1.0f - made * made);
      vec reset_g = made_g * load_some(kept + 2 * size + c, n) * reset * (1.0f - reset);
      vec update_g = grad * (load_some(h + c, n) - made) * update * (1.0f - update);
      vec parts[3] = {reset_g, update_g, made_g};
      for (i64 i = 0; i < 3; i++) {
        float* at = inputs_g + i * size + c;
        store_some(at, add ? load_some(at, n) + parts[i] : parts[i], n);
      }
      store_some(products_g + c, reset_g, n);
      store_some(products_g + size + c, update_g, n);
      store_some(products_g + 2 * size + c, made_g * reset, n);
      store_some(g + c, grad * update, n);
    }
    kept += 3 * size, candidate += size, h += size, g += size, inputs_g += 3 * size, products_g += 3 * size;
  }
  return 0;
}

}  // extern "C"
