// How samples are distributed over blocks.
//
// The elements of a sample are worked on chunk by chunk (reduction.h); the threads that share a chunk form a group. Small
// samples, and all samples of a large batch, have a block each ("alone"), which keeps the chunk sums in shared memory:
// one launch does everything. Otherwise several blocks share a sample, leave their chunk sums in scratch memory, and the
// next launch, every warp of it for itself, adds them up. The bits are the same either way, since the order of the sum
// is.
//
// A batch with fewer samples than there are multiprocessors leaves some of them idle. What it then takes is latency rather
// than bandwidth, so a block gets a group for every chunk, up to a maximum, rather than a sample a second launch.
#pragma once

#include <algorithm>

#include "reduction.h"

namespace pursamere::cuda {

constexpr int64_t kAloneChunks = 256;  // at most in a sample that a block does alone

struct SamplePlan {
  int64_t batch, d, chunks;
  int64_t parts, per_part;  // blocks for each sample, and the chunks of each
  int groups;               // in a block

  bool alone() const { return parts == 1; }
};

// max_groups: in a block.
inline SamplePlan plan_samples(int64_t batch, int64_t d, int multiprocessors, int max_groups = 1) {
  const int64_t chunks = chunk_count(d);
  if (chunks <= 8 || (chunks <= kAloneChunks && batch >= 2 * multiprocessors)) {
    // Blocks of a single group once a multiprocessor has several: they need not wait for one another.
    const int most = batch <= multiprocessors ? max_groups : 1;
    return {batch, d, chunks, 1, chunks, int(std::clamp<int64_t>(chunks, 1, most))};
  }
  const int64_t per_part = std::clamp<int64_t>(batch * chunks / (16 * multiprocessors), 1, 8);
  return {batch, d, chunks, (chunks + per_part - 1) / per_part, per_part, 1};
}

// One block per sample, for launches that only add up chunk sums.
inline SamplePlan one_block_each(const SamplePlan& plan) {
  return {plan.batch, plan.d, plan.chunks, 1, plan.chunks, 1};
}

// Chunk sums of every sample and, while those are more than one block can add up, their chunk sums, and so on.
inline int64_t scratch_values(const SamplePlan& plan, int sums) {
  if (plan.alone()) return 0;
  int64_t values = 0;
  for (int64_t n = plan.chunks;; n = chunk_count(n)) {
    values += n;
    if (n <= kChunk) return sums * plan.batch * values;
  }
}

}  // namespace pursamere::cuda
