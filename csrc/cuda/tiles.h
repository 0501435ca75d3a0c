// How the vectors of a sample are distributed over blocks where nothing is summed over a sample.
#pragma once

#include "cuda/launch.h"
#include "cuda/vectors.h"

namespace pursamere::cuda {

constexpr int kTileThreads = 256;

// Blocks that a multiprocessor is to hold, for __launch_bounds__: the most for which no kernel spills registers.
template <class Network>
inline constexpr int kTileBlocks = sizeof(Network) == 4 ? 2 : 1;

struct Tiles {
  int threads;    // in a block, one for each vector
  int64_t count;  // of blocks for a sample
};

template <class Network>
Tiles tiles_of(int64_t d) {
  const int64_t vectors = (d + kVector<Network> - 1) / kVector<Network>;
  const int threads = threads_for(vectors, kTileThreads);
  return {threads, (vectors + threads - 1) / threads};
}

}  // namespace pursamere::cuda
