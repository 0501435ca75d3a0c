// The gradient g = direct + sum over draws, in the order of the draws, of the elements that a thread works on.
#pragma once

#include "cuda/vectors.h"
#include "problems.h"

namespace pursamere::cuda {

// The fewest registers of a thread that suffice for a kernel that sums draws.
template <class Network>
inline constexpr int kSumRegisters = sizeof(Network) == 4 ? 64 : 96;

template <int V, class Image, class Network>
__device__ __forceinline__ void sum_draws(compute_t<Image> (&sum)[V], const DrawSum<Image, Network>& p, int64_t offset,
                                          int64_t count) {
  using A = compute_t<Image>;
  if (p.direct) {
    load<false>(sum, p.direct + offset, count);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = A(0);
  }
  const int64_t stride = p.batch * p.d;
  // Read once, unless a later pass has to sum again because a half type could not keep the sum.
  for (int64_t k = 0; k < p.draws; k += kDrawsAtOnce) {
    A draw[kDrawsAtOnce][V];
#pragma unroll
    for (int j = 0; j < kDrawsAtOnce; ++j)
      load<kStoredAsComputed<Image>>(draw[j], p.per_draw + (k + j) * stride + offset, k + j < p.draws ? count : 0);
#pragma unroll
    for (int j = 0; j < kDrawsAtOnce; ++j) {
      if (k + j >= p.draws) break;  // adding 0 instead would turn -0 into +0
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += draw[j][i];
    }
  }
}

}  // namespace pursamere::cuda
