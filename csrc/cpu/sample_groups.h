// Units of work that share noise: a tile of elements for a group of samples. The noise of a tile is generated once for
// the whole group, so samples are split only as far as needed to occupy all threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace pursamere {

struct SampleGroups {
  int64_t batch, d, layers, groups;

  // `layers` units (draws, say) exist for every tile and group anyway; `least` samples make a group worth its noise.
  SampleGroups(int64_t batch_, int64_t d_, int64_t layers_, int64_t least) : batch(batch_), d(d_), layers(layers_) {
    const int64_t wanted = 2 * int64_t(torch::stable::get_num_threads());
    const int64_t units = std::max<int64_t>(1, layers * tile_count(d));
    groups = std::clamp<int64_t>((wanted + units - 1) / units, 1, std::max<int64_t>(1, batch / least));
  }

  // Runs body(layer, first, count, first_sample, last_sample) on every unit; `work` is the number of values that one
  // element of one sample stands for.
  template <class Body>
  void for_each(int64_t work, Body&& body) const {
    const int64_t tiles = tile_count(d);
    // Two divisions, since the product may overflow for samples without elements.
    const int64_t grain = 1 + 32768 / std::clamp<int64_t>(d, 1, kTile) / std::max<int64_t>(1, batch / groups) / work;
    parallel_for(layers * tiles * groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t group = unit % groups, tile = unit / groups % tiles, layer = unit / groups / tiles;
        const int64_t first = tile * kTile;
        body(layer, first, std::min(kTile, d - first), batch * group / groups, batch * (group + 1) / groups);
      }
    });
  }
};

}  // namespace pursamere
