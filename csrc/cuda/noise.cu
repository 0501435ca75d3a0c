// noise: the bank xi itself, a thread for each vector of an independent draw.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/noise_vector.h"
#include "cuda/vectors.h"

namespace pursamere::cuda {
namespace {

constexpr int kThreads = 256;

template <class Stored>
__global__ void __launch_bounds__(kThreads) noise_kernel(const Noise<Stored> p, int64_t tiles) {
  using A = compute_t<Stored>;
  constexpr int V = kVector<Stored>;
  const int64_t copies = p.antithetic ? 2 : 1;
  for (int64_t unit = blockIdx.x; unit < p.draws / copies * tiles; unit += gridDim.x) {
    const int64_t draw = unit / tiles, first = (unit % tiles * blockDim.x + threadIdx.x) * V;
    A xi[V];
    noise_vector<V>(xi, noise_key(p.seed), uint32_t(draw), first);
    for (int64_t copy = 0; copy < copies; ++copy) {
      A value[V];
#pragma unroll
      for (int i = 0; i < V; ++i) value[i] = copy ? -xi[i] : xi[i];
      store(p.out + (draw * copies + copy) * p.d + first, value, p.d - first);
    }
  }
}

}  // namespace

template <class Stored>
void run(const Noise<Stored>& p, const Device& device) {
  const int64_t vectors = (p.d + kVector<Stored> - 1) / kVector<Stored>;
  const int threads = threads_for(vectors, kThreads);
  const int64_t tiles = (vectors + threads - 1) / threads;
  launch(device, {"noise", p.draws, 1, p.d}, noise_kernel<Stored>, p.draws / (p.antithetic ? 2 : 1) * tiles, threads, p,
         tiles);
}

#define PURSAMERE_NOISE(Stored) template void run(const Noise<Stored>&, const Device&);
PURSAMERE_FOR_EACH_TYPE(PURSAMERE_NOISE)

}  // namespace pursamere::cuda
