// A window of environment steps of a core with two latents, in one call forward and one back.

#include "layers.h"

extern "C" {

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
  return up(samples * w.low->length * w.low->size, LINE) + (low > high ? low : high);
}

i64 most(i64 a, i64 b) { return a > b ? a : b; }

// to = a + b (+ c)
void sum(const float* a, const float* b, const float* c, i64 floats, float* to) {
  for (i64 i = 0; i < floats; i += W) {
    vec rest = c ? load(b + i) + load(c + i) : load(b + i);
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
  if (!arena.begin(packs_floats(low) + packs_floats(high) + temporary + 2 * layer + 3 * up(chunk, LINE) + LINE)) return 1;
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
      return run_layers(s, packs, {base + up(low.batch * row, LINE), low.batch, first, true}, input, nullptr, samples);
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
  i64 temporary = most(backward_floats(low, at_once), backward_floats(high, at_once)) + 2 * up(chunk, LINE);
  if (!arena.begin(packs_back_floats(low) + packs_back_floats(high) + temporary + 3 * up(chunk, LINE) + LINE)) return 1;
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
      Memory memory{base + up(low.batch * row, LINE), low.batch, first, true};
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
