// noise: the bank xi itself, [K, *].
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/noise_tile.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace pursamere::cpu {

template <class Stored>
void run(const Noise<Stored>& p) {
  using A = compute_t<Stored>;
  const int64_t tiles = tile_count(p.d);
  parallel_for(p.draws * tiles, 4, [&](int64_t begin, int64_t end) {
    A xi[kTile];
    OutputRow<Stored> row;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t draw = unit / tiles, first = unit % tiles * kTile;
      const int64_t count = std::min(kTile, p.d - first);
      noise_tile(xi, noise_key(p.seed), independent_draw(draw, p.antithetic), first, count);
      Stored* target = p.out + draw * p.d + first;
      A* values = row.at(target);
      for (int64_t i = 0; i < count; ++i) values[i] = A(draw_sign(draw, p.antithetic)) * xi[i];
      row.finish(target, count);
    }
  });
}

#define PURSAMERE_NOISE(Stored) template void run(const Noise<Stored>&);
PURSAMERE_FOR_EACH_TYPE(PURSAMERE_NOISE)

}  // namespace pursamere::cpu
