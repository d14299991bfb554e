// Stacks of blocks (token mixing, then a SwiGLU; post-norm) on a CPU: forward and backward of a whole stack in one
// call, chunk by chunk of the batch, so that everything between a chunk's input and output stays in the cache.
//
// Compiled on the user's machine with its own C++ compiler (hrm_agent/kernels/build.py) and called through ctypes; it
// knows nothing of torch. All matrices are row-major float32. Sums of products run over the inner index in ascending
// order into one accumulator, as the usual BLAS kernels do, so that results stay close to torch's, often equal to
// them. Vectors are GCC/Clang vector extensions, so the file compiles for any machine.

#include "layers.h"

extern "C" {

const char* stack_instructions() { return INSTRUCTIONS; }  // "avx2", "neon", ...: what the compiler targeted

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
// [9, size], of MLP's first matrix and of gate_up the transpose.
int64_t stack_backward(const Stack* stack, const float* x, const float* y, float* kept, const float* g, float* gx,
                       float* const* weights_g) {
  const Stack& s = *stack;
  i64 at_once = samples_at_once(s), floats = at_once * s.length * s.size;
  if (!arena.begin(packs_back_floats(s) + backward_floats(s, at_once) + 2 * up(floats, LINE) + LINE)) return 1;
  const PackedBack* packs = pack_all_back(s);
  for (i64 first = 0; first < s.batch; first += at_once) {
    i64 at = first * s.length * s.size;
    run_layers_back(s, packs, {kept, s.batch, first, true}, const_cast<float*>(x) + at, const_cast<float*>(y) + at,
                    weights_g, least(at_once, s.batch - first), g + at, gx + at);
  }
  return 0;
}

}  // extern "C"
