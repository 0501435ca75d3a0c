// noise: the bank xi itself, [K, *].
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/noise_tile.h"
#include "cpu/rows.h"
#include "tensors.h"

namespace pursamere {
namespace {

template <class Stored>
void write_noise(Stored* out, int64_t draws, int64_t d, int64_t seed, bool antithetic) {
  using A = compute_t<Stored>;
  const int64_t tiles = tile_count(d);
  torch::stable::parallel_for(0, draws * tiles, 4, [&](int64_t begin, int64_t end) {
    A xi[kTile];
    OutputRow<Stored> row;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t draw = unit / tiles, first = unit % tiles * kTile;
      const int64_t count = std::min(kTile, d - first);
      noise_tile(xi, noise_key(seed), independent_draw(draw, antithetic), first, count);
      Stored* target = out + draw * d + first;
      A* values = row.at(target);
      for (int64_t i = 0; i < count; ++i) values[i] = A(draw_sign(draw, antithetic)) * xi[i];
      row.finish(target, count);
    }
  });
}

Tensor noise(const Tensor& like, int64_t draws, int64_t seed, bool antithetic) {
  check_draws(draws, antithetic);
  Tensor out = allocate_draws(like, draws, like.scalar_type());
  dispatch_dtype(like.scalar_type(), "noise", [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    write_noise(output_pointer<Stored>(out), draws, like.numel(), seed, antithetic);
  });
  return out;
}

}  // namespace
}  // namespace pursamere

STABLE_TORCH_LIBRARY_IMPL(pursamere, CPU, m) { m.impl("noise", TORCH_BOX(&pursamere::noise)); }
