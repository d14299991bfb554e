// Stacks of blocks (token mixing, then a SwiGLU; post-norm) on a CPU: forward and backward of a whole stack in one
// call, chunk by chunk of the batch, so that everything between a chunk's input and output stays in the cache.
//
// Compiled on the user's machine with its own C++ compiler (hrm_agent/kernels/build.py) and called through ctypes; it
// knows nothing of torch. All matrices are row-major float32. Sums of products run over the inner index in ascending
// order into one accumulator, as the usual BLAS kernels do, so that results stay close to torch's, often equal to
// them. Vectors are GCC/Clang vector extensions, so the file compiles for any machine.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#if defined(__AVX512BF16__)
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

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi16 __attribute__((vector_size(64)));

inline v16 load(const float* p) { return *reinterpret_cast<const v16u*>(p); }
inline void store(float* p, v16 v) { *reinterpret_cast<v16u*>(p) = v; }
inline v16 splat(float x) { return v16{} + x; }
inline v16 max(v16 a, v16 b) { return a > b ? a : b; }
inline i64 up(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }
inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

inline float total(v16 v) {
  float sum = 0;
  for (i64 i = 0; i < W; i++) sum += v[i];
  return sum;
}

// e^x to an ulp or two (Cephes' polynomial); x below -87 gives 0 or next to it, x above 88 about e^88.
inline v16 exponential(v16 x) {
  x = max(x, splat(-87.3f));
  x = x < splat(88.3f) ? x : splat(88.3f);
  v16 scaled = x * 1.44269504088896341f;
  vi16 n = __builtin_convertvector(scaled + (scaled < splat(0.f) ? splat(-0.5f) : splat(0.5f)), vi16);
  v16 whole = __builtin_convertvector(n, v16);
  v16 r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  v16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (v16)((n + 127) << 23);
}

inline v16 sigmoid(v16 x) { return 1.0f / (1.0f + exponential(-x)); }

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

// ---------------------------------------------------------------------------------------------- matrix products

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
  v16 sums[M][N] = {};
  for (i64 p = 0; p < inner; p++) {
    v16 right[N];
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

// ------------------------------------------------------------------------------------------- products in bfloat16

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

// ------------------------------------------------------------------------------------------------------- pieces

enum Mixing { CONV = 0, ATTENTION = 1, MLP = 2 };

}  // namespace

extern "C" {

// What hrm_agent/kernels/stack.py describes as `Shape`; sizes in numbers of floats.
struct Stack {
  i64 mixing, layers, batch, length, size, inner;
  i64 rows, cols;        // of the grid, CONV
  i64 heads;             // ATTENTION
  i64 position_inner;    // width of the SwiGLU over positions, MLP
  i64 bf16;              // products of the forward in bfloat16
  float epsilon;
  const float *cos, *sin;        // [length, size / heads] or null
  const float* const* weights;   // per layer: the mixing's one (CONV) or two, then gate_up and down
};

}  // extern "C"

namespace {

struct Weights {
  const float *first, *second, *gate_up, *down;
};

Weights weights_of(const Stack& s, i64 layer) {
  if (s.mixing == CONV) {
    const float* const* w = s.weights + 3 * layer;
    return {w[0], nullptr, w[1], w[2]};
  }
  const float* const* w = s.weights + 4 * layer;
  return {w[0], w[1], w[2], w[3]};
}

// What a layer's forward computes and its backward needs, of some tokens.
struct Kept {
  float *x;               // [tokens, D] the input
  float *mixed;           // ATTENTION: queries, keys and values [tokens, 3D]; MLP: [samples, 2 P, D]
  float *heard;           // ATTENTION: what attention gave, before its output matrix [tokens, D]
  float *normaliser;      // ATTENTION: log of the sum of exponentials [tokens, heads]
  float *h, *scale;       // [tokens, D] after the first norm; what it divided by: [tokens], MLP [samples, D]
  float *gate_up;         // [tokens, 2 I]
  float *y, *scale_y;     // [tokens, D] the output, [tokens]
};

i64 kept_size(const Stack& s, i64 samples) {
  i64 tokens = samples * s.length;
  i64 size = 2 * up(tokens * s.size, W) + up(tokens * 2 * s.inner, W) + up(tokens, W);
  if (s.mixing == MLP) return size + up(samples * s.size, W) + up(samples * 2 * s.position_inner * s.size, W);
  size += up(tokens, W);
  if (s.mixing == ATTENTION) size += up(tokens * 3 * s.size, W) + up(tokens * s.size, W) + up(tokens * s.heads, W);
  return size;
}

// The part of `samples` samples from `first` on, in a layer's memory laid out for `of` samples.
Kept kept_at(const Stack& s, float* base, i64 of, i64 first) {
  Kept k{};
  i64 tokens = of * s.length, at = first * s.length;
  auto take = [&](i64 all, i64 skip) {
    float* p = base + skip;
    base += up(all, W);
    return p;
  };
  k.h = take(tokens * s.size, at * s.size);
  k.y = take(tokens * s.size, at * s.size);
  k.gate_up = take(tokens * 2 * s.inner, at * 2 * s.inner);
  k.scale_y = take(tokens, at);
  if (s.mixing == MLP) {
    k.scale = take(of * s.size, first * s.size);
    i64 each = 2 * s.position_inner * s.size;
    k.mixed = take(of * each, first * each);
    return k;
  }
  k.scale = take(tokens, at);
  if (s.mixing == ATTENTION) {
    k.mixed = take(tokens * 3 * s.size, at * 3 * s.size);
    k.heard = take(tokens * s.size, at * s.size);
    k.normaliser = take(tokens * s.heads, at * s.heads);
  }
  return k;
}

// y = (a + b) / rms(a + b) per token; scale: what it was multiplied by.
void add_and_norm(const float* a, const float* b, i64 tokens, i64 size, float epsilon, float* y, float* scale) {
  for (i64 t = 0; t < tokens; t++) {
    v16 squares{};
    for (i64 c = 0; c < size; c += W) {
      v16 sum = load(a + t * size + c) + load(b + t * size + c);
      store(y + t * size + c, sum);
      squares += sum * sum;
    }
    float s = 1.0f / std::sqrt(total(squares) / size + epsilon);
    scale[t] = s;
    for (i64 c = 0; c < size; c += W) store(y + t * size + c, load(y + t * size + c) * s);
  }
}

// Gradient of the sum before a norm: s (g - y mean(g y)); may be written over g.
void norm_backward(const float* g, const float* y, const float* scale, i64 tokens, i64 size, float* to) {
  for (i64 t = 0; t < tokens; t++) {
    v16 along{};
    for (i64 c = 0; c < size; c += W) along += load(g + t * size + c) * load(y + t * size + c);
    float mean = total(along) / size, s = scale[t];
    for (i64 c = 0; c < size; c += W)
      store(to + t * size + c, (load(g + t * size + c) - load(y + t * size + c) * mean) * s);
  }
}

void swiglu(const float* gate_up, i64 rows, i64 inner, float* to) {
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < inner; c += W) {
      v16 gate = load(gate_up + r * 2 * inner + c);
      store(to + r * inner + c, gate * sigmoid(gate) * load(gate_up + r * 2 * inner + inner + c));
    }
}

#if defined(__AVX512BF16__)
void swiglu16(const float* gate_up, i64 rows, i64 inner, uint16_t* to) {
  float line[W];
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < inner; c += W) {
      v16 gate = load(gate_up + r * 2 * inner + c);
      store(line, gate * sigmoid(gate) * load(gate_up + r * 2 * inner + inner + c));
      narrow_row(line, W, to + r * inner + c);
    }
}
#else
void swiglu16(const float*, i64, i64, uint16_t*) {}
#endif

// Gradients of gate and up from that of silu(gate) up, and the product itself once more.
void swiglu_backward(const float* gate_up, const float* g, i64 rows, i64 inner, float* hidden, float* to) {
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < inner; c += W) {
      v16 gate = load(gate_up + r * 2 * inner + c), u = load(gate_up + r * 2 * inner + inner + c);
      v16 grad = load(g + r * inner + c), open = sigmoid(gate), silu = gate * open;
      store(hidden + r * inner + c, silu * u);
      store(to + r * 2 * inner + c, grad * u * (open + silu * (1.0f - open)));
      store(to + r * 2 * inner + inner + c, grad * silu);
    }
}

// ---------------------------------------------------------------------------------------------------- convolution

// weight[size, 3, 3] -> [9, size]
void turn_kernel(const float* weight, i64 size, float* to) {
  for (i64 c = 0; c < size; c++)
    for (i64 k = 0; k < KERNELS; k++) to[k * size + c] = weight[c * KERNELS + k];
}

// Depthwise 3x3 over each sample's grid; what lies outside counts as zero. `mirror`: its transpose.
void convolve(const Stack& s, const float* x, const float* kernel, i64 samples, bool mirror, float* to) {
  for (i64 b = 0; b < samples; b++)
    for (i64 r = 0; r < s.rows; r++)
      for (i64 q = 0; q < s.cols; q++) {
        i64 here = b * s.length + r * s.cols + q;
        for (i64 c = 0; c < s.size; c += W) {
          v16 sum{};
          for (i64 dr = -1; dr <= 1; dr++) {
            if (r + dr < 0 || r + dr >= s.rows) continue;
            for (i64 dq = -1; dq <= 1; dq++) {
              if (q + dq < 0 || q + dq >= s.cols) continue;
              i64 k = mirror ? (1 - dr) * 3 + 1 - dq : (dr + 1) * 3 + dq + 1;
              sum += load(kernel + k * s.size + c) * load(x + (here + dr * s.cols + dq) * s.size + c);
            }
          }
          store(to + here * s.size + c, sum);
        }
      }
}

// kernel gradient [9, size] += sum over cells of g(cell) x(cell + offset)
void convolve_weight(const Stack& s, const float* x, const float* g, i64 samples, float* to) {
  for (i64 c = 0; c < s.size; c += W) {
    v16 sums[KERNELS];
    for (i64 k = 0; k < KERNELS; k++) sums[k] = load(to + k * s.size + c);
    for (i64 b = 0; b < samples; b++)
      for (i64 r = 0; r < s.rows; r++)
        for (i64 q = 0; q < s.cols; q++) {
          i64 here = b * s.length + r * s.cols + q;
          v16 grad = load(g + here * s.size + c);
          for (i64 dr = -1; dr <= 1; dr++) {
            if (r + dr < 0 || r + dr >= s.rows) continue;
            for (i64 dq = -1; dq <= 1; dq++) {
              if (q + dq < 0 || q + dq >= s.cols) continue;
              sums[(dr + 1) * 3 + dq + 1] += grad * load(x + (here + dr * s.cols + dq) * s.size + c);
            }
          }
        }
    for (i64 k = 0; k < KERNELS; k++) store(to + k * s.size + c, sums[k]);
  }
}

// ------------------------------------------------------------------------------------------------------ attention

void turn(const Stack& s, float* qk, i64 samples, bool back) {
  if (!s.cos) return;
  i64 head = s.size / s.heads, half = head / 2;
  for (i64 t = 0; t < samples * s.length; t++) {
    const float *cos = s.cos + t % s.length * head, *sin = s.sin + t % s.length * head;
    for (i64 h = 0; h < 2 * s.heads; h++) {
      float *first = qk + t * 3 * s.size + h * head, *second = first + half;
      for (i64 c = 0; c < half; c++) {
        float a = first[c], b = second[c], turned = back ? -sin[c] : sin[c];
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

// Rows of scores -> exponentials of (score - largest) / root; the sums' reciprocals and logarithms.
void softmax(float* scores, i64 length, i64 padded, float factor, float* reciprocal, float* logarithm, i64 stride) {
  for (i64 t = 0; t < length; t++) {
    float* row = scores + t * padded;
    for (i64 j = length; j < padded; j++) row[j] = -INFINITY;
    v16 highest = load(row);
    for (i64 j = W; j < padded; j += W) highest = max(highest, load(row + j));
    float top = highest[0];
    for (i64 i = 1; i < W; i++) top = top > highest[i] ? top : highest[i];
    v16 sums{};
    for (i64 j = 0; j < padded; j += W) {
      v16 e = exponential((load(row + j) - top) * factor);
      if (j + W > length)
        for (i64 i = 0; i < W; i++)
          if (j + i >= length) e[i] = 0;
      store(row + j, e);
      sums += e;
    }
    float sum = total(sums);
    reciprocal[t] = 1.0f / sum;
    if (logarithm) logarithm[t * stride] = top * factor + std::log(sum);
  }
}

struct AttentionSpace {
  float *transposed, *scores, *reciprocal;
  pair *keys = nullptr, *values = nullptr, *queries = nullptr, *weights = nullptr;  // bfloat16
  i64 padded;

  static i64 size(const Stack& s) {
    i64 padded = up(s.length, W), head = s.size / s.heads;
    i64 floats = up(head * padded, W) + up(s.length * padded, W) + up(s.length, W);
    if (!s.bf16) return floats;
    return floats + up(head / 2 * up(padded, PANEL), W) + up((padded / 2 + 1) * up(head, PANEL), W) +
           up(s.length * head / 2, W) + up(s.length * padded / 2, W);
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
  softmax(space.scores, s.length, padded, factor, space.reciprocal, normaliser, s.heads);
  if (s.bf16) {
    uint16_t* weights = reinterpret_cast<uint16_t*>(space.weights);
    for (i64 t = 0; t < s.length; t++) narrow_row(space.scores + t * padded, padded, weights + t * padded);
    Right16 values = pack16_rows(v, s.length, head, row, space.values);
    multiply16(s.length, head, (s.length + 1) / 2, rows16(space.weights, padded / 2), values, out, s.size);
  } else {
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
    for (i64 j = s.length; j < padded; j++) scores[j] = 0;
  }
  multiply(s.length, head, s.length, columns_of(space.scores, padded), plain(g, s.size), to + 2 * s.size, row);
  transpose_head(v, row, s.length, head, padded, space.transposed);
  multiply(s.length, padded, head, rows_of(g, s.size), plain(space.transposed, padded), second, padded);
  for (i64 t = 0; t < s.length; t++) {
    v16 along{};
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

// -------------------------------------------------------------------------------------------------------- forward

// A layer's weights as the products want them.
struct Packed {
  const float* kernel;
  Right first, second, gate_up, down;
  Right16 first16, second16, gate_up16, down16;
  const pair *position_gate_up, *position_down;  // MLP in bfloat16: left-hand
};

i64 packed_floats(const Stack& s) {
  i64 size = packed_size(s.size, 2 * s.inner) + packed_size(s.inner, s.size);
  if (s.mixing == CONV) size += up(KERNELS * s.size, W);
  if (s.mixing == ATTENTION) size += packed_size(s.size, 3 * s.size) + packed_size(s.size, s.size);
  if (s.mixing == MLP) size += up(s.position_inner * 2 * up(s.length, 2), W) + up(s.length * s.position_inner, W);
  return size + 8 * W;
}

const pair* pack16_left(const float* a, i64 rows, i64 inner) {
  i64 pairs = (inner + 1) / 2;
  pair* to = reinterpret_cast<pair*>(arena.take(rows * pairs));
  for (i64 r = 0; r < rows; r++)
    for (i64 p = 0; p < pairs; p++)
      to[r * pairs + p] = both(a[r * inner + 2 * p], 2 * p + 1 < inner ? a[r * inner + 2 * p + 1] : 0.0f);
  return to;
}

Packed pack(const Stack& s, i64 layer) {
  Weights w = weights_of(s, layer);
  Packed p{};
  auto right = [&](const float* weight, i64 inner, i64 columns, Right& to, Right16& to16) {
    float* space = arena.take(packed_size(inner, columns));
    if (s.bf16)
      to16 = pack16_transposed(weight, inner, columns, inner, reinterpret_cast<pair*>(space));
    else
      to = pack_transposed(weight, inner, columns, space);
  };
  right(w.gate_up, s.size, 2 * s.inner, p.gate_up, p.gate_up16);
  right(w.down, s.inner, s.size, p.down, p.down16);
  if (s.mixing == CONV) {
    float* kernel = arena.take(KERNELS * s.size);
    turn_kernel(w.first, s.size, kernel);
    p.kernel = kernel;
  } else if (s.mixing == ATTENTION) {
    right(w.first, s.size, 3 * s.size, p.first, p.first16);
    right(w.second, s.size, s.size, p.second, p.second16);
  } else if (s.bf16) {
    p.position_gate_up = pack16_left(w.first, 2 * s.position_inner, s.length);
    p.position_down = pack16_left(w.second, s.length, s.position_inner);
  }
  return p;
}

i64 samples_at_once(const Stack& s) { return least(s.batch, CHUNK_TOKENS / s.length > 1 ? CHUNK_TOKENS / s.length : 1); }

// Room for the pairs of one sample's right-hand matrices in mixing over positions.
i64 positions_right(const Stack& s) {
  i64 longest = s.length > s.position_inner ? s.length : s.position_inner;
  return (longest + 1) / 2 * up(s.size, PANEL);
}

i64 forward_floats(const Stack& s, i64 samples) {
  i64 tokens = samples * s.length;
  i64 size = up(tokens * s.size, W) + up(tokens * s.inner, W) + up(tokens * s.size, W) + 16 * W;
  if (s.mixing == ATTENTION) size += AttentionSpace::size(s) + 8 * W;
  if (s.mixing == MLP) size += up(s.position_inner * s.size, W) + positions_right(s) + up(s.length * s.size, W);
  return size;
}

// x W^T for tokens x[tokens, inner], in the precision of the stack. narrow: room for x in bfloat16.
void project(const Stack& s, const float* x, i64 tokens, i64 inner, i64 columns, Right w, Right16 w16, float* narrow, float* to) {
  if (!s.bf16) return multiply(tokens, columns, inner, rows_of(x, inner), w, to, columns);
  narrow_row(x, tokens * inner, reinterpret_cast<uint16_t*>(narrow));
  multiply16(tokens, columns, inner / 2, rows16(reinterpret_cast<pair*>(narrow), inner / 2), w16, to, columns);
}

// One sample's SwiGLU over positions: x[length, D] -> to[length, D]; gate_up[2 P, D] is kept.
void mix_positions(const Stack& s, const Weights& w, const Packed& p, const float* x, float* gate_up, float* hidden,
                   float* right, float* to) {
  i64 width = s.position_inner;
  const float* up_rows = gate_up + width * s.size;
  if (s.bf16) {
    Right16 b = pack16_rows(x, s.length, s.size, s.size, reinterpret_cast<pair*>(right));
    i64 pairs = (s.length + 1) / 2;
    multiply16(2 * width, s.size, pairs, rows16(p.position_gate_up, pairs), b, gate_up, s.size);
  } else {
    multiply(2 * width, s.size, s.length, rows_of(w.first, s.length), plain(x, s.size), gate_up, s.size);
  }
  for (i64 i = 0; i < width * s.size; i += W) {
    v16 gate = load(gate_up + i);
    store(hidden + i, gate * sigmoid(gate) * load(up_rows + i));
  }
  if (s.bf16) {
    Right16 b = pack16_rows(hidden, width, s.size, s.size, reinterpret_cast<pair*>(right));
    i64 pairs = (width + 1) / 2;
    multiply16(s.length, s.size, pairs, rows16(p.position_down, pairs), b, to, s.size);
  } else {
    multiply(s.length, s.size, width, rows_of(w.second, width), plain(hidden, s.size), to, s.size);
  }
}

// As add_and_norm, but the mean is over a sample's positions, for each channel.
void add_and_norm_positions(const Stack& s, const float* a, const float* b, float* y, float* scale) {
  for (i64 c = 0; c < s.size; c += W) {
    v16 squares{};
    for (i64 t = 0; t < s.length; t++) {
      v16 sum = load(a + t * s.size + c) + load(b + t * s.size + c);
      store(y + t * s.size + c, sum);
      squares += sum * sum;
    }
    v16 mean = squares / static_cast<float>(s.length) + s.epsilon, factor;
    for (i64 i = 0; i < W; i++) factor[i] = 1.0f / std::sqrt(mean[i]);
    store(scale + c, factor);
    for (i64 t = 0; t < s.length; t++) store(y + t * s.size + c, load(y + t * s.size + c) * factor);
  }
}

void layer_forward(const Stack& s, const Weights& w, const Packed& p, const Kept& k, i64 samples, bool keep) {
  i64 tokens = samples * s.length, mark = arena.mark();
  float* branch = arena.take(tokens * s.size);
  float* narrow = arena.take(tokens * s.inner);
  float* narrow_x = arena.take(tokens * s.size);
  if (s.mixing == CONV) {
    convolve(s, k.x, p.kernel, samples, false, branch);
    add_and_norm(k.x, branch, tokens, s.size, s.epsilon, k.h, k.scale);
  } else if (s.mixing == ATTENTION) {
    AttentionSpace space(s);
    i64 head = s.size / s.heads;
    project(s, k.x, tokens, s.size, 3 * s.size, p.first, p.first16, narrow_x, k.mixed);
    turn(s, k.mixed, samples, false);
    for (i64 b = 0; b < samples; b++)
      for (i64 h = 0; h < s.heads; h++)
        attend(s, space, k.mixed + b * s.length * 3 * s.size + h * head, k.heard + b * s.length * s.size + h * head,
               keep ? k.normaliser + b * s.length * s.heads + h : nullptr);
    project(s, k.heard, tokens, s.size, s.size, p.second, p.second16, narrow_x, branch);
    add_and_norm(k.x, branch, tokens, s.size, s.epsilon, k.h, k.scale);
  } else {
    float* hidden = arena.take(s.position_inner * s.size);
    float* right = arena.take(positions_right(s));
    float* mixed = arena.take(s.length * s.size);
    for (i64 b = 0; b < samples; b++) {
      const float* x = k.x + b * s.length * s.size;
      mix_positions(s, w, p, x, k.mixed + b * 2 * s.position_inner * s.size, hidden, right, mixed);
      add_and_norm_positions(s, x, mixed, k.h + b * s.length * s.size, k.scale + b * s.size);
    }
  }
  project(s, k.h, tokens, s.size, 2 * s.inner, p.gate_up, p.gate_up16, narrow_x, k.gate_up);
  if (s.bf16) {
    swiglu16(k.gate_up, tokens, s.inner, reinterpret_cast<uint16_t*>(narrow));
    multiply16(tokens, s.size, s.inner / 2, rows16(reinterpret_cast<pair*>(narrow), s.inner / 2), p.down16, branch, s.size);
  } else {
    swiglu(k.gate_up, tokens, s.inner, narrow);
    multiply(tokens, s.size, s.inner, rows_of(narrow, s.inner), p.down, branch, s.size);
  }
  add_and_norm(k.h, branch, tokens, s.size, s.epsilon, k.y, k.scale_y);
  arena.back(mark);
}

// ------------------------------------------------------------------------------------------------------- backward

struct Gradients {  // of a layer's weights; added to
  float *first, *second, *gate_up, *down;
};

// A right-hand matrix in the precision of the stack.
struct Either {
  Right full;
  Right16 narrow;
};

// What the products of the backward multiply by.
struct PackedBack {
  const float* kernel;
  Either first, second, gate_up, down;
};

PackedBack pack_back(const Stack& s, i64 layer) {
  Weights w = weights_of(s, layer);
  PackedBack p{};
  auto right = [&](const float* weight, i64 inner, i64 columns) {
    float* space = arena.take(packed_size(inner, columns));
    if (s.bf16) return Either{{}, pack16_rows(weight, inner, columns, columns, reinterpret_cast<pair*>(space))};
    return Either{pack_rows(weight, inner, columns, space), {}};
  };
  p.gate_up = right(w.gate_up, 2 * s.inner, s.size);
  p.down = right(w.down, s.size, s.inner);
  if (s.mixing == CONV) {
    float* kernel = arena.take(KERNELS * s.size);
    turn_kernel(w.first, s.size, kernel);
    p.kernel = kernel;
  } else if (s.mixing == ATTENTION) {
    p.first = right(w.first, 3 * s.size, s.size);
    p.second = right(w.second, s.size, s.size);
  }
  return p;
}

// to[rows, columns] (+)= a[rows, inner] w
void product(const Stack& s, const float* a, i64 rows, i64 inner, i64 columns, const Either& w, float* to, bool add) {
  if (!s.bf16) return multiply(rows, columns, inner, rows_of(a, inner), w.full, to, columns, add);
  i64 mark = arena.mark();
  pair* narrow = reinterpret_cast<pair*>(arena.take(rows * inner / 2));
  narrow_row(a, rows * inner, reinterpret_cast<uint16_t*>(narrow));
  multiply16(rows, columns, inner / 2, rows16(narrow, inner / 2), w.narrow, to, columns, add);
  arena.back(mark);
}

// to[m, n] += a[tokens, m]^T b[tokens, n], the gradient of a matrix
void outer(const Stack& s, const float* a, i64 m, const float* b, i64 n, i64 tokens, float* to) {
  if (!s.bf16) return multiply(m, n, tokens, columns_of(a, m), plain(b, n), to, n, true);
  i64 mark = arena.mark(), pairs = (tokens + 1) / 2;
  pair *left = reinterpret_cast<pair*>(arena.take(pairs * m)), *right = reinterpret_cast<pair*>(arena.take(pairs * n));
  pair_rows(a, tokens, m, left);
  pair_rows(b, tokens, n, right);
  multiply16(m, n, pairs, {left, 1, m}, {right, n, PANEL}, to, n, true);
  arena.back(mark);
}

i64 packed_back_floats(const Stack& s) {
  i64 size = packed_size(2 * s.inner, s.size) + packed_size(s.size, s.inner) + up(KERNELS * s.size, W);
  if (s.mixing == ATTENTION) size += packed_size(3 * s.size, s.size) + packed_size(s.size, s.size);
  return size + 8 * W;
}

i64 backward_floats(const Stack& s, i64 samples) {
  i64 tokens = samples * s.length;
  i64 size = 4 * up(tokens * s.size, W) + 2 * up(tokens * s.inner, W) + up(tokens * 2 * s.inner, W) + 16 * W;
  if (s.mixing == ATTENTION)
    size += AttentionSpace::size(s) + up(tokens * 3 * s.size, W) + up(s.length * up(s.length, W), W) + 8 * W;
  if (s.mixing == MLP) size += 4 * up(2 * s.position_inner * s.size, W) + 8 * W;
  i64 widest = 2 * s.inner > 3 * s.size ? 2 * s.inner : 3 * s.size;
  return size + (tokens + 1) * (widest + s.inner + s.size) / 2 + 4 * W;  // products in bfloat16
}

void norm_backward_positions(const Stack& s, const float* g, const float* y, const float* scale, float* to) {
  for (i64 c = 0; c < s.size; c += W) {
    v16 along{};
    for (i64 t = 0; t < s.length; t++) along += load(g + t * s.size + c) * load(y + t * s.size + c);
    v16 mean = along / static_cast<float>(s.length), factor = load(scale + c);
    for (i64 t = 0; t < s.length; t++)
      store(to + t * s.size + c, (load(g + t * s.size + c) - load(y + t * s.size + c) * mean) * factor);
  }
}

// One sample of mixing over positions: g[length, D], the gradient before the norm -> to[length, D], that of x.
void mix_positions_backward(const Stack& s, const Weights& w, const Gradients& gw, const float* x, const float* gate_up,
                            const float* g, float* to) {
  i64 width = s.position_inner, mark = arena.mark(), all = width * s.size;
  float *hidden_g = arena.take(all), *hidden = arena.take(all), *gate_up_g = arena.take(2 * all);
  float *turned = arena.take(2 * all), *turned_hidden = turned;
  multiply(width, s.size, s.length, columns_of(w.second, width), plain(g, s.size), hidden_g, s.size);
  for (i64 i = 0; i < all; i += W) {
    v16 gate = load(gate_up + i), u = load(gate_up + all + i), grad = load(hidden_g + i);
    v16 open = sigmoid(gate), silu = gate * open;
    store(hidden + i, silu * u);
    store(gate_up_g + i, grad * u * (open + silu * (1.0f - open)));
    store(gate_up_g + all + i, grad * silu);
  }
  for (i64 i = 0; i < width; i++)
    for (i64 c = 0; c < s.size; c++) turned_hidden[c * width + i] = hidden[i * s.size + c];
  multiply(s.length, width, s.size, rows_of(g, s.size), plain(turned_hidden, width), gw.second, width, true);
  std::memcpy(to, g, s.length * s.size * sizeof(float));
  multiply(s.length, s.size, 2 * width, columns_of(w.first, s.length), plain(gate_up_g, s.size), to, s.size, true);
  for (i64 i = 0; i < 2 * width; i++)
    for (i64 c = 0; c < s.size; c++) turned[c * 2 * width + i] = gate_up_g[i * s.size + c];
  multiply(s.length, 2 * width, s.size, rows_of(x, s.size), plain(turned, 2 * width), gw.first, 2 * width, true);
  arena.back(mark);
}

// g[tokens, D]: gradient of the layer's output -> to: that of its input (another place).
void layer_backward(const Stack& s, const Weights& w, const PackedBack& p, const Gradients& gw, const Kept& k,
                    i64 samples, const float* g, float* to) {
  i64 tokens = samples * s.length, d = s.size, inner = s.inner, mark = arena.mark();
  float *sum_g = arena.take(tokens * d), *h_g = arena.take(tokens * d);
  float *hidden_g = arena.take(tokens * inner), *hidden = arena.take(tokens * inner);
  float* gate_up_g = arena.take(tokens * 2 * inner);
  norm_backward(g, k.y, k.scale_y, tokens, d, sum_g);
  product(s, sum_g, tokens, d, inner, p.down, hidden_g, false);
  swiglu_backward(k.gate_up, hidden_g, tokens, inner, hidden, gate_up_g);
  outer(s, sum_g, d, hidden, inner, tokens, gw.down);
  std::memcpy(h_g, sum_g, tokens * d * sizeof(float));
  product(s, gate_up_g, tokens, 2 * inner, d, p.gate_up, h_g, true);
  outer(s, gate_up_g, 2 * inner, k.h, d, tokens, gw.gate_up);
  if (s.mixing == MLP) {
    for (i64 b = 0; b < samples; b++) {
      i64 at = b * s.length * d;
      norm_backward_positions(s, h_g + at, k.h + at, k.scale + b * d, sum_g + at);
      mix_positions_backward(s, w, gw, k.x + at, k.mixed + b * 2 * s.position_inner * d, sum_g + at, to + at);
    }
    return arena.back(mark);
  }
  norm_backward(h_g, k.h, k.scale, tokens, d, sum_g);
  if (s.mixing == CONV) {
    convolve(s, sum_g, p.kernel, samples, true, to);
    for (i64 i = 0; i < tokens * d; i += W) store(to + i, load(to + i) + load(sum_g + i));
    convolve_weight(s, k.x, sum_g, samples, gw.first);
    return arena.back(mark);
  }
  AttentionSpace space(s);
  float *heard_g = h_g, *mixed_g = arena.take(tokens * 3 * d), *second = arena.take(s.length * space.padded);
  i64 head = d / s.heads;
  product(s, sum_g, tokens, d, d, p.second, heard_g, false);
  outer(s, sum_g, d, k.heard, d, tokens, gw.second);
  for (i64 b = 0; b < samples; b++)
    for (i64 h = 0; h < s.heads; h++) {
      i64 at = b * s.length * d + h * head, at3 = b * s.length * 3 * d + h * head;
      attend_backward(s, space, k.mixed + at3, k.heard + at, k.normaliser + b * s.length * s.heads + h, heard_g + at,
                      second, mixed_g + at3);
    }
  turn(s, mixed_g, samples, true);
  outer(s, mixed_g, 3 * d, k.x, d, tokens, gw.first);
  std::memcpy(to, sum_g, tokens * d * sizeof(float));
  product(s, mixed_g, tokens, 3 * d, d, p.first, to, true);
  arena.back(mark);
}

// ------------------------------------------------------------------------------------------------- whole stacks

i64 packs_floats(const Stack& s) {
  return s.layers * (packed_floats(s) + sizeof(Packed) / sizeof(float) + W) + W;
}

i64 packs_back_floats(const Stack& s) {
  return s.layers * (packed_back_floats(s) + sizeof(PackedBack) / sizeof(float) + W) + W;
}

const Packed* pack_all(const Stack& s) {
  Packed* packs = reinterpret_cast<Packed*>(arena.take(s.layers * sizeof(Packed) / sizeof(float) + W));
  for (i64 layer = 0; layer < s.layers; layer++) packs[layer] = pack(s, layer);
  return packs;
}

const PackedBack* pack_all_back(const Stack& s) {
  PackedBack* packs = reinterpret_cast<PackedBack*>(arena.take(s.layers * sizeof(PackedBack) / sizeof(float) + W));
  for (i64 layer = 0; layer < s.layers; layer++) packs[layer] = pack_back(s, layer);
  return packs;
}

// Where the layers of one call keep what the backward needs: `layers` times kept_size, laid out for `of` samples.
struct Memory {
  float* base;
  i64 of, first;
  bool keep;

  Kept layer(const Stack& s, i64 layer) const {
    return kept_at(s, base + (keep ? layer : layer % 2) * kept_size(s, of), of, first);
  }
};

// All layers on a chunk. output: where the last one writes; null: where it is kept. Returns where that is.
float* run_layers(const Stack& s, const Packed* packs, const Memory& memory, float* input, float* output, i64 samples) {
  for (i64 layer = 0; layer < s.layers; layer++) {
    Kept k = memory.layer(s, layer);
    k.x = input;
    if (output && layer == s.layers - 1) k.y = output;
    layer_forward(s, weights_of(s, layer), packs[layer], k, samples, memory.keep);
    input = k.y;
  }
  return input;
}

// g: gradient of the last layer's output -> to: that of `input`. output: as run_layers returned it.
void run_layers_back(const Stack& s, const PackedBack* packs, const Memory& memory, float* input, float* output,
                     float* const* weights_g, i64 samples, const float* g, float* to) {
  i64 mark = arena.mark(), each = s.mixing == CONV ? 3 : 4, floats = samples * s.length * s.size;
  float* between[2] = {arena.take(floats), arena.take(floats)};
  for (i64 layer = s.layers - 1; layer >= 0; layer--) {
    Kept k = memory.layer(s, layer);
    k.x = layer ? memory.layer(s, layer - 1).y : input;
    if (layer == s.layers - 1) k.y = output;
    float* const* of = weights_g + each * layer;
    Gradients gw = s.mixing == CONV ? Gradients{of[0], nullptr, of[1], of[2]} : Gradients{of[0], of[1], of[2], of[3]};
    float* next = layer ? between[layer % 2] : to;
    layer_backward(s, weights_of(s, layer), packs[layer], gw, k, samples, g, next);
    g = next;
  }
  arena.back(mark);
}

}  // namespace

extern "C" {

int64_t stack_has_bfloat16() { return HAS_BFLOAT16; }

// Floats that a layer keeps of a whole batch for its backward.
int64_t stack_kept_floats(const Stack* s) { return kept_size(*s, s->batch); }

// x[batch, length, size] -> y. kept: layers * stack_kept_floats, or null where no gradient is wanted.
// Returns 0, or 1 where there is no memory.
int64_t stack_forward(const Stack* stack, const float* x, float* y, float* kept) {
  const Stack& s = *stack;
  i64 at_once = samples_at_once(s);
  if (!arena.begin(packs_floats(s) + forward_floats(s, at_once) + 2 * kept_size(s, at_once))) return 1;
  const Packed* packs = pack_all(s);
  float* spare = kept ? nullptr : arena.take(2 * kept_size(s, at_once));
  for (i64 first = 0; first < s.batch; first += at_once) {
    i64 at = first * s.length * s.size;
    Memory memory = kept ? Memory{kept, s.batch, first, true} : Memory{spare, at_once, 0, false};
    run_layers(s, packs, memory, const_cast<float*>(x) + at, y + at, least(at_once, s.batch - first));
  }
  return 0;
}

// Gradients from that of y. gx: [batch, length, size]. weights_g: as Stack.weights, zeros at first; of a convolution
// [9, size], of MLP's first matrix the transpose.
int64_t stack_backward(const Stack* stack, const float* x, const float* y, float* kept, const float* g, float* gx,
                       float* const* weights_g) {
  const Stack& s = *stack;
  i64 at_once = samples_at_once(s), floats = at_once * s.length * s.size;
  if (!arena.begin(packs_back_floats(s) + backward_floats(s, at_once) + 2 * up(floats, W) + W)) return 1;
  const PackedBack* packs = pack_all_back(s);
  for (i64 first = 0; first < s.batch; first += at_once) {
    i64 at = first * s.length * s.size;
    run_layers_back(s, packs, {kept, s.batch, first, true}, const_cast<float*>(x) + at, const_cast<float*>(y) + at,
                    weights_g, least(at_once, s.batch - first), g + at, gx + at);
  }
  return 0;
}

// What hrm_agent/kernels/window.py describes: k environment steps of a core with two latents.
struct Window {
  const Stack *low, *high;             // networks of z_L and z_H, of equal batch, length and size
  int64_t steps, segments, outer, inner;  // outer: H_cycles, inner: L_cycles
  int64_t cut;                         // no gradient between steps
  const float *fresh_h, *fresh_l;      // [size] the latents that an episode begins with
  const uint8_t* starts;               // [steps, batch] here an episode begins
  const int64_t* read;                 // [steps, batch] the token that is read of z_H
};

}  // extern "C"

namespace {

i64 calls(const Window& w) { return w.steps * w.segments * w.outer * (w.inner + 1); }

i64 call_floats(const Window& w, i64 samples) {
  i64 low = w.low->layers * kept_size(*w.low, samples), high = w.high->layers * kept_size(*w.high, samples);
  return up(samples * w.low->length * w.low->size, W) + (low > high ? low : high);
}

i64 most(i64 a, i64 b) { return a > b ? a : b; }

// to = a + b (+ c)
void sum(const float* a, const float* b, const float* c, i64 floats, float* to) {
  for (i64 i = 0; i < floats; i += W) {
    v16 rest = c ? load(b + i) + load(c + i) : load(b + i);
    store(to + i, load(a + i) + rest);
  }
}

// Rows whose episode begins get the fresh latent, or zeros.
void replace(const Window& w, const uint8_t* starts, const float* fresh, i64 samples, float* z) {
  i64 length = w.low->length, size = w.low->size;
  for (i64 b = 0; b < samples; b++) {
    if (!starts[b]) continue;
    for (i64 t = 0; t < length; t++)
      if (fresh)
        std::memcpy(z + (b * length + t) * size, fresh, size * sizeof(float));
      else
        std::memset(z + (b * length + t) * size, 0, size * sizeof(float));
  }
}

bool any(const uint8_t* starts, i64 samples) {
  for (i64 b = 0; b < samples; b++)
    if (starts[b]) return true;
  return false;
}

}  // namespace

extern "C" {

// Floats that a window keeps for its backward.
int64_t window_kept_floats(const Window* w) { return calls(*w) * call_floats(*w, w->low->batch); }

// tokens[steps, batch, length, size] and latents [batch, length, size] -> read[steps, batch, size] and the latents
// after the last step. kept: window_kept_floats, or null. Returns 0, or 1 where there is no memory.
int64_t window_forward(const Window* window, const float* tokens, const float* z_h, const float* z_l, float* reads,
                       float* out_h, float* out_l, float* kept) {
  const Window& w = *window;
  const Stack &low = *w.low, &high = *w.high;
  i64 at_once = samples_at_once(low), row = low.length * low.size, chunk = at_once * row;
  i64 layer = most(kept_size(low, at_once), kept_size(high, at_once));
  i64 temporary = most(forward_floats(low, at_once), forward_floats(high, at_once));
  if (!arena.begin(packs_floats(low) + packs_floats(high) + temporary + 2 * layer + 3 * up(chunk, W) + W)) return 1;
  const Packed *low_packs = pack_all(low), *high_packs = w.low == w.high ? low_packs : pack_all(high);
  float* spare = arena.take(2 * layer);
  float *h_room = arena.take(chunk), *l_room = arena.take(chunk), *in_room = arena.take(chunk);
  i64 call_size = call_floats(w, low.batch);
  for (i64 first = 0; first < low.batch; first += at_once) {
    i64 samples = least(at_once, low.batch - first), floats = samples * row, at = first * row, call = 0;
    std::memcpy(h_room, z_h + at, floats * sizeof(float));
    std::memcpy(l_room, z_l + at, floats * sizeof(float));
    float *h = h_room, *l = l_room;
    auto think = [&](const Stack& s, const Packed* packs, const float* a, const float* b, const float* c, float* to) {
      float* base = kept ? kept + call++ * call_size : nullptr;
      float* input = kept ? base + at : in_room;
      sum(a, b, c, floats, input);
      if (!kept) return run_layers(s, packs, {spare, at_once, 0, false}, input, to, samples);
      return run_layers(s, packs, {base + up(low.batch * row, W), low.batch, first, true}, input, nullptr, samples);
    };
    for (i64 t = 0; t < w.steps; t++) {
      const float* x = tokens + t * low.batch * row + at;
      const uint8_t* starts = w.starts + t * low.batch + first;
      if (any(starts, samples)) {
        if (h != h_room) std::memcpy(h_room, h, floats * sizeof(float));
        if (l != l_room) std::memcpy(l_room, l, floats * sizeof(float));
        h = h_room, l = l_room;
        replace(w, starts, w.fresh_h, samples, h);
        replace(w, starts, w.fresh_l, samples, l);
      }
      for (i64 cycle = 0; cycle < w.segments * w.outer; cycle++) {
        for (i64 i = 0; i < w.inner; i++) l = think(low, low_packs, l, h, x, l_room);
        h = think(high, high_packs, h, l, nullptr, h_room);
      }
      for (i64 b = 0; b < samples; b++) {
        i64 step = t * low.batch + first + b;
        std::memcpy(reads + step * low.size, h + b * row + w.read[step] * low.size, low.size * sizeof(float));
      }
    }
    std::memcpy(out_h + at, h, floats * sizeof(float));
    std::memcpy(out_l + at, l, floats * sizeof(float));
  }
  return 0;
}

// Gradients from those of the reads [steps, batch, size] and of the latents after the window (or null): of the tokens,
// of the latents before the window, and of the weights, which are added to.
int64_t window_backward(const Window* window, float* kept, const float* reads_g, const float* out_h_g,
                        const float* out_l_g, float* tokens_g, float* z_h_g, float* z_l_g, float* const* low_g,
                        float* const* high_g) {
  const Window& w = *window;
  const Stack &low = *w.low, &high = *w.high;
  i64 at_once = samples_at_once(low), row = low.length * low.size, chunk = at_once * row;
  i64 temporary = most(backward_floats(low, at_once), backward_floats(high, at_once)) + 2 * up(chunk, W);
  if (!arena.begin(packs_back_floats(low) + packs_back_floats(high) + temporary + 3 * up(chunk, W) + W)) return 1;
  const PackedBack *low_packs = pack_all_back(low), *high_packs = w.low == w.high ? low_packs : pack_all_back(high);
  float *h = arena.take(chunk), *l = arena.take(chunk), *in = arena.take(chunk);
  i64 call_size = call_floats(w, low.batch);
  for (i64 first = 0; first < low.batch; first += at_once) {
    i64 samples = least(at_once, low.batch - first), floats = samples * row, at = first * row, call = calls(w);
    auto begin = [&](float* z, const float* given) {
      if (given)
        std::memcpy(z, given + at, floats * sizeof(float));
      else
        std::memset(z, 0, floats * sizeof(float));
    };
    auto back = [&](const Stack& s, const PackedBack* packs, float* const* weights_g, const float* g) {
      float* base = kept + --call * call_size;
      Memory memory{base + up(low.batch * row, W), low.batch, first, true};
      run_layers_back(s, packs, memory, base + at, memory.layer(s, s.layers - 1).y, weights_g, samples, g, in);
    };
    begin(h, out_h_g);
    begin(l, out_l_g);
    for (i64 t = w.steps - 1; t >= 0; t--) {
      float* x = tokens_g + t * low.batch * row + at;
      std::memset(x, 0, floats * sizeof(float));
      for (i64 b = 0; b < samples; b++) {
        i64 step = t * low.batch + first + b;
        float* to = h + b * row + w.read[step] * low.size;
        sum(to, reads_g + step * low.size, nullptr, low.size, to);
      }
      for (i64 cycle = 0; cycle < w.segments * w.outer; cycle++) {
        back(high, high_packs, high_g, h);
        std::memcpy(h, in, floats * sizeof(float));
        sum(l, in, nullptr, floats, l);
        for (i64 i = 0; i < w.inner; i++) {
          back(low, low_packs, low_g, l);
          std::memcpy(l, in, floats * sizeof(float));
          sum(h, in, nullptr, floats, h);
          sum(x, in, nullptr, floats, x);
        }
      }
      const uint8_t* starts = w.starts + t * low.batch + first;
      if (w.cut) {
        begin(h, nullptr);
        begin(l, nullptr);
      } else if (any(starts, samples)) {
        replace(w, starts, nullptr, samples, h);
        replace(w, starts, nullptr, samples, l);
      }
    }
    std::memcpy(z_h_g + at, h, floats * sizeof(float));
    std::memcpy(z_l_g + at, l, floats * sizeof(float));
  }
  return 0;
}

}  // extern "C"
