// residual_backward: values for every draw mixed with shared ones, and their sum over the draws.
#include "cuda/kernels.h"
#include "cuda/tiles.h"
#include "cuda/vectors.h"

namespace pursamere::cuda {
namespace {

template <class Image, class Network>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<Network>)
    residual_backward_kernel(const ResidualBackward<Image, Network> p, int64_t tiles) {
  using A = compute_t<Image>;
  constexpr int V = kVector<Network>;
  const int64_t stride = p.batch * p.d;
  for (int64_t unit = blockIdx.x; unit < p.batch * tiles; unit += gridDim.x) {
    const int64_t first = (unit % tiles * blockDim.x + threadIdx.x) * V, count = p.d - first;
    const int64_t offset = unit / tiles * p.d + first;
    if (count <= 0) continue;
    A shared[V], sum[V] = {};
    load<true>(shared, p.shared + offset, count);
#pragma unroll
    for (int i = 0; i < V; ++i) shared[i] = p.mix.shared(shared[i]);
    // Read everything before the first write, since the compiler can't move reads above writes.
    for (int64_t k = 0; k < p.draws; k += kDrawsAtOnce) {
      A draw[kDrawsAtOnce][V];
#pragma unroll
      for (int j = 0; j < kDrawsAtOnce; ++j)
        load<true>(draw[j], p.per_draw + (k + j) * stride + offset, k + j < p.draws ? count : 0);
#pragma unroll
      for (int j = 0; j < kDrawsAtOnce; ++j) {
        if (k + j >= p.draws) break;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const A u = p.mix.mixed(draw[j][i], shared[i]);
          sum[i] += u;
          draw[j][i] = p.mix.s * u;
        }
        store(p.out + (k + j) * stride + offset, draw[j], count);
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] *= p.mix.t;
    store(p.sum + offset, sum, count);
  }
}

}  // namespace

template <class Image, class Network>
void run(const ResidualBackward<Image, Network>& p, const Device& device) {
  const Tiles tiles = tiles_of<Network>(p.d);
  launch(device, {"residual_backward", p.draws, p.batch, p.d}, residual_backward_kernel<Image, Network>,
         p.batch * tiles.count, tiles.threads, p, tiles.count);
}

#define PURSAMERE_RESIDUAL_BACKWARD(Image, Network) \
  template void run(const ResidualBackward<Image, Network>&, const Device&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_RESIDUAL_BACKWARD)

}  // namespace pursamere::cuda
