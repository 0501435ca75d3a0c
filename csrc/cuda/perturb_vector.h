// y_k = scale (x + sigma xi_k) + shift of the elements that a thread works on, the noise read from a bank.
#pragma once

#include "cuda/vectors.h"
#include "problems.h"

namespace pursamere::cuda {

// `x` is an op's result, which perturbs it as if it had read what it stored.
template <int V, class Image, class Network>
__device__ __forceinline__ void perturb_vector(const Perturbed<Image, Network>& p, const compute_t<Image> (&x)[V],
                                               const DrawSum<Image, Network>& shape, int64_t sample, int64_t first,
                                               int64_t count) {
  using A = compute_t<Image>;
  A image[V];
#pragma unroll
  for (int i = 0; i < V; ++i) image[i] = p.input.image(to_compute(from_compute<Image>(x[i])));
  constexpr int kAtOnce = 16 / V;  // reads of 16 bytes in flight: four
  const int64_t copies = p.antithetic ? 2 : 1;
  for (int64_t k = 0; k < p.independent; k += kAtOnce) {
    float xi[kAtOnce][V];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      load<false>(xi[j], p.bank + (k + j) * shape.d + first, k + j < p.independent ? count : 0);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (k + j >= p.independent) break;
      for (int64_t copy = 0; copy < copies; ++copy) {
        A value[V];
#pragma unroll
        for (int i = 0; i < V; ++i) value[i] = p.input.noisy(image[i], A(copy ? -1 : 1), A(xi[j][i]));
        store(p.y + (((k + j) * copies + copy) * shape.batch + sample) * shape.d + first, value, count);
      }
    }
  }
}

}  // namespace pursamere::cuda
