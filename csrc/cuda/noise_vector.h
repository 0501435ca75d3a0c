// The noise of the elements that a thread works on.
#pragma once

#include <cuda_runtime.h>

#include "gaussian.h"

namespace pursamere::cuda {

// Elements [first, first + V) of an independent draw, V and first multiples of 4.
template <int V, class A>
__device__ __forceinline__ void noise_vector(A (&xi)[V], NoiseKey key, uint32_t draw, int64_t first) {
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    float z[4];
    gaussian4(key, draw, uint64_t(first + i) / 4, z[0], z[1], z[2], z[3]);
#pragma unroll
    for (int j = 0; j < 4; ++j) xi[i + j] = A(z[j]);
  }
}

}  // namespace pursamere::cuda
