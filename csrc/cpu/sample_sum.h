// Sums over the elements of a sample, in the order of reduction.h.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "reduction.h"

namespace pursamere {

// The chunk sums of `count` values, of which there are chunk_count(count); values beyond count count as zero, and
// `values` has room for whole chunks.
void sum_chunks(float* sums, float* values, int64_t count);
void sum_chunks(double* sums, double* values, int64_t count);

template <class A>
A sum_in_order(std::vector<A> values) {
  int64_t n = int64_t(values.size());
  values.resize(size_t(chunk_count(n) * kChunk));
  for (; n > 1; n = chunk_count(n)) sum_chunks(values.data(), values.data(), n);
  return n == 1 ? values[0] : A(0);
}

// Runs body(first, count) on every tile of a sample of d elements, in parallel where the samples are not.
// `work` is the number of values that one element stands for.
template <class Body>
void for_each_tile(int64_t d, int64_t work, Body&& body) {
  parallel_for(tile_count(d), 1 + 32768 / kTile / work, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) body(t * kTile, std::min(kTile, d - t * kTile));
  });
}

// The sum over a sample of what body(first, count, values) writes for each tile into values[0 .. count).
template <class A, class Body>
A sum_over_tiles(int64_t d, int64_t work, Body&& body) {
  std::vector<A> partial(size_t(chunk_count(d)));
  for_each_tile(d, work, [&](int64_t first, int64_t count) {
    A values[kTile];
    body(first, count, values);
    sum_chunks(partial.data() + first / kChunk, values, count);
  });
  return sum_in_order(std::move(partial));
}

// Runs body(sample) on every sample, in parallel where that is worth it. Within it for_each_tile is serial, and parallel
// only where this is not.
template <class Body>
void for_each_sample(int64_t batch, int64_t d, int64_t work, Body&& body) {
  parallel_for(batch, 1 + 32768 / std::max<int64_t>(1, d) / work, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

}  // namespace pursamere
