// All layers of a stack on a chunk of the batch, forward and back.

#pragma once

#include "backward.h"

namespace {

i64 packs_floats(const Stack& s) {
  return s.layers * (packed_floats(s) + sizeof(Packed) / sizeof(float) + LINE) + LINE;
}

i64 packs_back_floats(const Stack& s) {
  return s.layers * (packed_back_floats(s) + sizeof(PackedBack) / sizeof(float) + LINE) + LINE;
}

const Packed* pack_all(const Stack& s) {
  Packed* packs = reinterpret_cast<Packed*>(arena.take(s.layers * sizeof(Packed) / sizeof(float) + LINE));
  for (i64 layer = 0; layer < s.layers; layer++) packs[layer] = pack(s, layer);
  return packs;
}

const PackedBack* pack_all_back(const Stack& s) {
  PackedBack* packs = reinterpret_cast<PackedBack*>(arena.take(s.layers * sizeof(PackedBack) / sizeof(float) + LINE));
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
  i64 mark = arena.mark(), floats = samples * s.length * s.size;
  float* between[2] = {arena.take(floats), arena.take(floats)};
  for (i64 layer = s.layers - 1; layer >= 0; layer--) {
    Kept k = memory.layer(s, layer);
    k.x = layer ? memory.layer(s, layer - 1).y : input;
    if (layer == s.layers - 1) k.y = output;
    Gradients gw = layer_of<Gradients>(s, weights_g, layer);
    float* next = layer ? between[layer % 2] : to;
    layer_backward(s, weights_of(s, layer), packs[layer], gw, k, samples, g, next);
    g = next;
  }
  arena.back(mark);
}

}  // namespace
