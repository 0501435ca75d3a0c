// Sums over the elements of a sample, in the order of reduction.h.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "reduction.h"

namespace pursamere {

// Sums `values` in place; a copy of at most one chunk at a time is padded with zeros.
template <class A>
A sum_in_order(std::vector<A>& values) {
  A chunk[kChunk];
  int64_t n = int64_t(values.size());
  while (n > 1) {
    for (int64_t c = 0; c < chunk_count(n); ++c) {
      const int64_t count = std::min(kChunk, n - c * kChunk);
      std::copy_n(values.begin() + c * kChunk, count, chunk);
      std::fill(chunk + count, chunk + kChunk, A(0));
      values[size_t(c)] = sum_chunk(chunk);
    }
    n = chunk_count(n);
  }
  return n == 1 ? values[0] : A(0);
}

// Runs body(first, count) on every chunk of a sample of d elements, in parallel where the samples are not.
// `work` is the number of values that one element stands for.
template <class Body>
void for_each_chunk(int64_t d, int64_t work, Body&& body) {
  torch::stable::parallel_for(0, chunk_count(d), 1 + 32768 / (kChunk * work), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) body(c * kChunk, std::min(kChunk, d - c * kChunk));
  });
}

// The sum over a sample of what body(first, count, values) writes for each chunk: `values` has room for kChunk, and
// only its first `count` need be written.
template <class A, class Body>
A sum_over_chunks(int64_t d, int64_t work, Body&& body) {
  std::vector<A> partial(size_t(chunk_count(d)));
  for_each_chunk(d, work, [&](int64_t first, int64_t count) {
    A values[kChunk];
    body(first, count, values);
    std::fill(values + count, values + kChunk, A(0));
    partial[size_t(first / kChunk)] = sum_chunk(values);
  });
  return sum_in_order(partial);
}

// Runs body(sample) on every sample, in parallel where that is worth it. Within it for_each_chunk is serial, and
// parallel only where this is not.
template <class Body>
void for_each_sample(int64_t batch, int64_t d, int64_t work, Body&& body) {
  torch::stable::parallel_for(0, batch, 1 + 32768 / std::max<int64_t>(1, d * work), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

}  // namespace pursamere
