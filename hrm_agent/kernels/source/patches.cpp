// Grids of ids to tokens: each token is the sum of the embeddings of its patch, one for each (place in the patch, id).

#include "threads.h"
#include "vectors.h"

extern "C" {

// What hrm_agent/kernels/patches.py describes. A table has (ids + 1) rows for each place of a patch, the last for
// places outside the grid.
struct Patches {
  int64_t count, height, width;     // grids, and their sides
  int64_t crop, patch, rows, cols;  // rings dropped; side of a patch; patches of a grid
  int64_t ids, size;                // ids from 0 on; channels, a multiple of LINE
  int64_t threads;                  // that share the grids
};

}  // extern "C"

namespace {

constexpr i64 MOST_PLACES = 64;

// For every token of a thread's part of the grids, the rows of the table that it sums. False where an id is too large.
template <typename Use>
bool for_tokens(const Patches& p, i64 part, const uint8_t* grids, Use use) {
  i64 bottom = p.height - p.crop, right = p.width - p.crop, places = p.patch * p.patch, chosen[MOST_PLACES];
  for (i64 n = p.count * part / p.threads; n < p.count * (part + 1) / p.threads; n++) {
    const uint8_t* grid = grids + n * p.height * p.width;
    for (i64 r = 0; r < p.rows; r++)
      for (i64 q = 0; q < p.cols; q++) {
        for (i64 place = 0; place < places; place++) {
          i64 row = p.crop + r * p.patch + place / p.patch, col = p.crop + q * p.patch + place % p.patch, id = p.ids;
          if (row < bottom && col < right) {
            id = grid[row * p.width + col];
            if (id >= p.ids) return false;
          }
          chosen[place] = place * (p.ids + 1) + id;
        }
        use((n * p.rows + r) * p.cols + q, chosen, places);
      }
  }
  return true;
}

i64 floored(i64 a, i64 b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

}  // namespace

extern "C" {

// grids[count, height, width] -> tokens[count, rows * cols, size]. Returns 0, or 1 where an id is too large.
int64_t patches_forward(const Patches* patches, const uint8_t* grids, const float* table, float* tokens) {
  const Patches& p = *patches;
  std::atomic<i64> failed{0};
  kernel_threads::share(p.threads, p.threads, [&](auto next) {
    for (i64 part = next(); part >= 0; part = next()) {
      bool known = for_tokens(p, part, grids, [&](i64 token, const i64* chosen, i64 places) {
        for (i64 c = 0; c < p.size; c += W) {
          vec sum = load(table + chosen[0] * p.size + c);
          for (i64 place = 1; place < places; place++) sum += load(table + chosen[place] * p.size + c);
          store(tokens + token * p.size + c, sum);
        }
      });
      if (!known) failed.store(1);
    }
  });
  return failed;
}

// The gradient of the table, [threads] after each other, which are added to, from that of the tokens.
int64_t patches_backward(const Patches* patches, const uint8_t* grids, const float* tokens_g, float* table_g) {
  const Patches& p = *patches;
  i64 table = p.patch * p.patch * (p.ids + 1) * p.size;
  kernel_threads::share(p.threads, p.threads, [&](auto next) {
    for (i64 part = next(); part >= 0; part = next())
      for_tokens(p, part, grids, [&](i64 token, const i64* chosen, i64 places) {
        for (i64 place = 0; place < places; place++)
          for (i64 c = 0; c < p.size; c += W) {
            float* to = table_g + part * table + chosen[place] * p.size + c;
            store(to, load(to) + load(tokens_g + token * p.size + c));
          }
      });
  });
  return 0;
}

// The token of the first cell that holds `id`, of the first cell where none does; cells in the dropped rings are
// counted as patches beyond the grid.
int64_t patches_find(const Patches* patches, const uint8_t* grids, int64_t id, int64_t* found) {
  const Patches& p = *patches;
  i64 cells = p.height * p.width;
  for (i64 n = 0; n < p.count; n++) {
    const void* at = id >= 0 && id < 256 ? std::memchr(grids + n * cells, static_cast<int>(id), cells) : nullptr;
    i64 cell = at ? static_cast<const uint8_t*>(at) - (grids + n * cells) : 0;
    found[n] = floored(cell / p.width - p.crop, p.patch) * p.cols + floored(cell % p.width - p.crop, p.patch);
  }
  return 0;
}

}  // extern "C"
