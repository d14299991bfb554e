// A window of environment steps of a core with two latents, in one call forward and one back.

#include "gate.h"
#include "layers.h"
#include "threads.h"

extern "C" {

// What hrm_agent/kernels/window.py describes: k environment steps of a core with two latents.
struct Window {
  const Stack *low, *high;             // networks of z_L and z_H, of equal batch, length and size
  int64_t steps, segments, outer, inner;  // outer: H_cycles, inner: L_cycles
  int64_t carry;                       // between steps, see Carry
  int64_t cut;                         // no gradient between steps
  const float *fresh_h, *fresh_l;      // [size] the latents that an episode begins with
  const float *gate, *gate_bias;       // GATE: see Gate
  const uint8_t* starts;               // [steps, batch] here an episode begins
  const int64_t* read;                 // [steps, batch] the token that is read of z_H; null: the mean of all
  const float* tokens;                 // [steps, batch, length, size]
  const float *z_h, *z_l;              // [batch, length, size] before the window; not RESET
  int64_t* used;                       // [steps, batch] segments until settled; null: all of them, always
  int64_t threads;                     // that share the batch
  int64_t parts;                       // that it has in the backward
  float threshold;                     // of settling: the latents' change in a segment, relative to their norm
};

}  // extern "C"

namespace {

enum Carry { FULL = 0, GATE = 1, RESET = 2 };

i64 most(i64 a, i64 b) { return a > b ? a : b; }

// to = a + b (+ c)
void sum(const float* a, const float* b, const float* c, i64 floats, float* to) {
  for (i64 i = 0; i < floats; i += W) {
    vec rest = c ? load(b + i) + load(c + i) : load(b + i);
    store(to + i, load(a + i) + rest);
  }
}

// A window and where its parts lie.
struct Layout {
  const Window& w;
  const Stack &low, &high;
  i64 row;       // floats of a sample's latent
  i64 at_once;   // samples that think together: one where each may stop by itself
  i64 each;      // calls of a network in a segment
  i64 call_size;

  explicit Layout(const Window& w)
      : w(w), low(*w.low), high(*w.high), row(low.length * low.size), each(w.outer * (w.inner + 1)) {
    at_once = w.used ? least(low.batch, 1) : samples_at_once(low);
    i64 layers = most(low.layers * kept_size(low, low.batch), high.layers * kept_size(high, low.batch));
    call_size = up(low.batch * row, LINE) + layers;
  }

  i64 gates_floats() const { return w.carry == GATE ? up(w.steps * low.batch * low.length * 2, LINE) : 0; }
  i64 kept_floats() const { return w.steps * w.segments * each * call_size + gates_floats(); }
  // Inputs of a call of a network and, behind them, what its layers keep.
  float* call(float* kept, i64 step, i64 number) const {
    return kept + gates_floats() + (step * w.segments * each + number) * call_size;
  }
  Memory memory(float* call, i64 first) const { return {call + up(low.batch * row, LINE), low.batch, first, true}; }
  const float* output(const Stack& s, float* call, i64 first) const {
    return memory(call, first).layer(s, s.layers - 1).y;
  }
  i64 segments(i64 step, i64 first) const { return w.used ? w.used[step * low.batch + first] : w.segments; }
  float* gates(float* kept, i64 step, i64 sample) const { return kept + (step * low.batch + sample) * low.length * 2; }
  const uint8_t* starts(i64 step, i64 first) const { return w.starts + step * low.batch + first; }
  Gate gate() const { return {w.gate, w.gate_bias, w.fresh_h, w.fresh_l, low.size}; }
};

// The same vector at every position, or zeros.
void fill(const float* vector, i64 length, i64 size, float* to) {
  for (i64 t = 0; t < length; t++)
    if (vector)
      std::memcpy(to + t * size, vector, size * sizeof(float));
    else
      std::memset(to + t * size, 0, size * sizeof(float));
}

// A chunk of samples that thinks step by step.
class Thinker {
 public:
  Thinker(const Layout& at, float* kept) : at(at), w(at.w), kept(kept) {
    low_packs = pack_all(at.low);
    high_packs = w.low == w.high ? low_packs : pack_all(at.high);
    layer = most(kept_size(at.low, at.at_once), kept_size(at.high, at.at_once));
    i64 chunk = at.at_once * at.row;
    spare = arena.take(2 * layer);
    h_room = arena.take(chunk), l_room = arena.take(chunk), in_room = arena.take(chunk);
    h_before = arena.take(chunk), l_before = arena.take(chunk), gates_room = arena.take(2 * at.low.length);
  }

  static i64 floats(const Layout& at) {
    const Stack &low = at.low, &high = at.high;
    i64 temporary = most(forward_floats(low, at.at_once), forward_floats(high, at.at_once));
    i64 layer = most(kept_size(low, at.at_once), kept_size(high, at.at_once));
    i64 rooms = 2 * layer + 5 * up(at.at_once * at.row, LINE) + up(2 * low.length, LINE);
    return packs_floats(low) + packs_floats(high) + temporary + rooms + 2 * LINE;
  }

  void begin(i64 from, i64 count) {
    first = from, samples = count, size = count * at.row;
    h = h_room, l = l_room;
    if (w.carry == RESET) return;
    std::memcpy(h_room, w.z_h + first * at.row, size * sizeof(float));
    std::memcpy(l_room, w.z_l + first * at.row, size * sizeof(float));
  }

  void step(i64 t, float* reads) {
    x = w.tokens + (t * at.low.batch + first) * at.row;
    seed(t);
    i64 call = 0, segment = 0;
    for (bool settled = false; segment < w.segments && !settled; segment++) {
      if (w.used) {
        std::memcpy(h_before, h, size * sizeof(float));
        std::memcpy(l_before, l, size * sizeof(float));
      }
      for (i64 cycle = 0; cycle < w.outer; cycle++) {
        for (i64 i = 0; i < w.inner; i++) l = think(at.low, low_packs, t, call++, l, h, x, l_room);
        h = think(at.high, high_packs, t, call++, h, l, nullptr, h_room);
      }
      settled = w.used && change() < w.threshold;
    }
    if (w.used) w.used[t * at.low.batch + first] = segment;
    read(t, reads);
  }

  void end(float* out_h, float* out_l) const {
    if (w.carry == RESET) return;
    std::memcpy(out_h + first * at.row, h, size * sizeof(float));
    std::memcpy(out_l + first * at.row, l, size * sizeof(float));
  }

 private:
  // What the step thinks from.
  void seed(i64 t) {
    const uint8_t* starts = at.starts(t, first);
    bool any = w.carry != FULL;
    for (i64 b = 0; b < samples; b++) any = any || starts[b];
    if (!any) return;
    for (i64 b = 0; b < samples; b++) {
      const float *from_h = h + b * at.row, *from_l = l + b * at.row;
      float *to_h = h_room + b * at.row, *to_l = l_room + b * at.row;
      if (w.carry == RESET || starts[b]) {
        fill(w.fresh_h, at.low.length, at.low.size, to_h);
        fill(w.fresh_l, at.low.length, at.low.size, to_l);
      } else if (w.carry == GATE) {
        float* gates = kept ? at.gates(kept, t, first + b) : gates_room;
        gate_forward(at.gate(), x + b * at.row, from_h, from_l, at.low.length, to_h, to_l, gates);
      } else {
        if (from_h != to_h) std::memcpy(to_h, from_h, at.row * sizeof(float));
        if (from_l != to_l) std::memcpy(to_l, from_l, at.row * sizeof(float));
      }
    }
    h = h_room, l = l_room;
  }

  float* think(const Stack& s, const Packed* packs, i64 t, i64 number, const float* a, const float* b, const float* c,
               float* to) {
    float* call = kept ? at.call(kept, t, number) : nullptr;
    float* input = kept ? call + first * at.row : in_room;
    sum(a, b, c, size, input);
    if (!kept) return run_layers(s, packs, {spare, at.at_once, 0, false}, input, to, samples);
    return run_layers(s, packs, at.memory(call, first), input, nullptr, samples);
  }

  // ||after - before|| / ||after|| of both latents.
  float change() const {
    vec moved{}, norm{};
    for (i64 i = 0; i < size; i += W) {
      vec to_h = load(h + i) - load(h_before + i), to_l = load(l + i) - load(l_before + i);
      moved += to_h * to_h + to_l * to_l;
      norm += load(h + i) * load(h + i) + load(l + i) * load(l + i);
    }
    float whole = total(norm);
    return std::sqrt(total(moved) / (whole > 0 ? whole : 1.17549435e-38f));
  }

  void read(i64 t, float* reads) const {
    i64 d = at.low.size;
    for (i64 b = 0; b < samples; b++) {
      i64 place = t * at.low.batch + first + b;
      float* to = reads + place * d;
      const float* from = h + b * at.row;
      if (w.read) {
        std::memcpy(to, from + w.read[place] * d, d * sizeof(float));
        continue;
      }
      for (i64 c = 0; c < d; c += W) {
        vec all{};
        for (i64 i = 0; i < at.low.length; i++) all += load(from + i * d + c);
        store(to + c, all / static_cast<float>(at.low.length));
      }
    }
  }

  const Layout& at;
  const Window& w;
  float* kept;
  const Packed *low_packs, *high_packs;
  float *spare, *h_room, *l_room, *in_room, *h_before, *l_before, *gates_room;
  i64 layer;
  i64 first = 0, samples = 0, size = 0;
  float *h = nullptr, *l = nullptr;
  const float* x = nullptr;
};

struct WindowGradients {
  float *tokens, *z_h, *z_l;
  float *const *low, *const *high;
  GateGradients gate;
};

// The way back of a chunk, from its last step to its first.
class Returner {
 public:
  Returner(const Layout& at, float* kept, const WindowGradients& to) : at(at), w(at.w), kept(kept), to(to) {
    low_packs = pack_all_back(at.low);
    high_packs = w.low == w.high ? low_packs : pack_all_back(at.high);
    i64 chunk = at.at_once * at.row;
    h = arena.take(chunk), l = arena.take(chunk), in = arena.take(chunk);
  }

  static i64 floats(const Layout& at) {
    i64 chunk = up(at.at_once * at.row, LINE);
    i64 temporary = most(backward_floats(at.low, at.at_once), backward_floats(at.high, at.at_once)) + 2 * chunk;
    return packs_back_floats(at.low) + packs_back_floats(at.high) + temporary + 3 * chunk + LINE;
  }

  void begin(i64 from, i64 count, const float* out_h_g, const float* out_l_g) {
    first = from, samples = count, size = count * at.row;
    set(h, out_h_g);
    set(l, out_l_g);
  }

  void step(i64 t, const float* reads_g) {
    float* x = to.tokens + (t * at.low.batch + first) * at.row;
    std::memset(x, 0, size * sizeof(float));
    read(t, reads_g);
    i64 segments = at.segments(t, first), call = segments * at.each;
    for (i64 cycle = 0; cycle < segments * w.outer; cycle++) {
      back(at.high, high_packs, to.high, t, --call, h);
      std::memcpy(h, in, size * sizeof(float));
      sum(l, in, nullptr, size, l);
      for (i64 i = 0; i < w.inner; i++) {
        back(at.low, low_packs, to.low, t, --call, l);
        std::memcpy(l, in, size * sizeof(float));
        sum(h, in, nullptr, size, h);
        sum(x, in, nullptr, size, x);
      }
    }
    seed(t, x);
  }

  void end() const {
    if (w.carry == RESET) return;
    std::memcpy(to.z_h + first * at.row, h, size * sizeof(float));
    std::memcpy(to.z_l + first * at.row, l, size * sizeof(float));
  }

 private:
  void set(float* z, const float* given) {
    if (given)
      std::memcpy(z, given + first * at.row, size * sizeof(float));
    else
      std::memset(z, 0, size * sizeof(float));
  }

  void back(const Stack& s, const PackedBack* packs, float* const* weights_g, i64 t, i64 number, const float* g) {
    float* call = at.call(kept, t, number);
    Memory memory = at.memory(call, first);
    run_layers_back(s, packs, memory, call + first * at.row, memory.layer(s, s.layers - 1).y, weights_g, samples, g, in);
  }

  void read(i64 t, const float* reads_g) {
    i64 d = at.low.size;
    for (i64 b = 0; b < samples; b++) {
      i64 place = t * at.low.batch + first + b;
      const float* g = reads_g + place * d;
      float* z = h + b * at.row;
      if (w.read) {
        sum(z + w.read[place] * d, g, nullptr, d, z + w.read[place] * d);
        continue;
      }
      for (i64 i = 0; i < at.low.length; i++)
        for (i64 c = 0; c < d; c += W)
          store(z + i * d + c, load(z + i * d + c) + load(g + c) / static_cast<float>(at.low.length));
    }
  }

  // Gradients of what the step thought from -> those of the latents after the step before it.
  void seed(i64 t, float* x_g) {
    const uint8_t* starts = at.starts(t, first);
    for (i64 b = 0; b < samples; b++) {
      if (w.carry == GATE && !starts[b]) gate(t, b, x_g);
      if (!w.cut && w.carry != RESET && !starts[b]) continue;
      std::memset(h + b * at.row, 0, at.row * sizeof(float));
      std::memset(l + b * at.row, 0, at.row * sizeof(float));
    }
  }

  void gate(i64 t, i64 b, float* x_g) {
    i64 skip = (first + b) * at.row, here = b * at.row, last = t ? at.segments(t - 1, first) * at.each - 1 : 0;
    const float* before_h = t ? at.output(at.high, at.call(kept, t - 1, last), first) + here : w.z_h + skip;
    const float* before_l = t ? at.output(at.low, at.call(kept, t - 1, last - 1), first) + here : w.z_l + skip;
    gate_backward(at.gate(), w.tokens + t * at.low.batch * at.row + skip, before_h, before_l,
                  at.gates(kept, t, first + b), at.low.length, h + here, l + here, x_g + here, to.gate);
  }

  const Layout& at;
  const Window& w;
  float* kept;
  WindowGradients to;
  const PackedBack *low_packs, *high_packs;
  float *h, *l, *in;
  i64 first = 0, samples = 0, size = 0;
};

}  // namespace

extern "C" {

// Floats that a window keeps for its backward.
int64_t window_kept_floats(const Window* w) { return Layout(*w).kept_floats(); }

// reads[steps, batch, size], the latents after the last step (not RESET) and Window.used. kept: window_kept_floats, or
// null. Returns 0, or 1 where there is no memory.
int64_t window_forward(const Window* window, float* reads, float* out_h, float* out_l, float* kept) {
  Layout at(*window);
  i64 chunks = at.at_once ? (at.low.batch + at.at_once - 1) / at.at_once : 0;
  std::atomic<i64> failed{0};
  kernel_threads::share(chunks, window->threads, [&](auto next) {
    i64 chunk = next();
    if (chunk < 0) return;
    if (!arena.begin(Thinker::floats(at))) return failed.store(1);
    Thinker thinker(at, kept);
    for (; chunk >= 0; chunk = next()) {
      i64 first = chunk * at.at_once;
      thinker.begin(first, least(at.at_once, at.low.batch - first));
      for (i64 t = 0; t < window->steps; t++) thinker.step(t, reads);
      thinker.end(out_h, out_l);
    }
  });
  return failed;
}

// Gradients from those of the reads [steps, batch, size] and of the latents after the window (or null): of the tokens,
// of the latents before the window (not RESET), and of the weights and the gate, which are added to.
//
// Threads take parts of the batch in turn. Each part has gradients of its own, low_g[parts, weights] and gate_g[parts,
// ...], so that sums do not depend on which thread is the faster.
int64_t window_backward(const Window* window, float* kept, const float* reads_g, const float* out_h_g,
                        const float* out_l_g, float* tokens_g, float* z_h_g, float* z_l_g, float* const* low_g,
                        float* const* high_g, float* gate_g, float* gate_bias_g) {
  Layout at(*window);
  i64 chunks = at.at_once ? (at.low.batch + at.at_once - 1) / at.at_once : 0, parts = window->parts;
  std::atomic<i64> failed{0};
  kernel_threads::share(parts, window->threads, [&](auto next) {
    for (i64 part = next(); part >= 0; part = next()) {
      if (!arena.begin(Returner::floats(at))) return failed.store(1);
      float *const *low = low_g + part * weights_count(*window->low), *const *high = high_g + part * weights_count(*window->high);
      GateGradients gate{gate_g ? gate_g + part * 6 * at.low.size : nullptr, gate_g ? gate_bias_g + part * 2 : nullptr};
      Returner returner(at, kept, {tokens_g, z_h_g, z_l_g, low, high, gate});
      for (i64 chunk = chunks * part / parts; chunk < chunks * (part + 1) / parts; chunk++) {
        i64 first = chunk * at.at_once;
        returner.begin(first, least(at.at_once, at.low.batch - first), out_h_g, out_l_g);
        for (i64 t = window->steps - 1; t >= 0; t--) returner.step(t, reads_g);
        returner.end();
      }
    }
  });
  return failed;
}

}  // extern "C"
