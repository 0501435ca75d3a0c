// sum_draws: the sum over the draws, in their order, a thread for each vector.
#include "cuda/draw_sum.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace pursamere::cuda {
namespace {

constexpr int kThreads = 256;

template <class Image, class Network>
__global__ void __launch_bounds__(kThreads) sum_draws_kernel(const SumDraws<Image, Network> p, int64_t vectors) {
  constexpr int V = kVector<Network>;
  // The samples of a draw follow one another, so they are one row here.
  const int64_t count = p.gradient.batch * p.gradient.d;
  for (int64_t unit = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; unit < vectors;
       unit += gridDim.x * int64_t(blockDim.x)) {
    const int64_t first = unit * V;
    compute_t<Image> sum[V];
    sum_draws(sum, p.gradient, first, count - first);
    store(p.out + first, sum, count - first);
  }
}

}  // namespace

template <class Image, class Network>
void run(const SumDraws<Image, Network>& p, const Device& device) {
  const DrawSum<Image, Network>& sum = p.gradient;
  const int64_t vectors = (sum.batch * sum.d + kVector<Network> - 1) / kVector<Network>;
  const int threads = threads_for(vectors, kThreads);
  launch(device, {"sum_draws", sum.draws, sum.batch, sum.d}, sum_draws_kernel<Image, Network>,
         (vectors + threads - 1) / threads, threads, p, vectors);
}

#define PURSAMERE_SUM_DRAWS(Image, Network) template void run(const SumDraws<Image, Network>&, const Device&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_SUM_DRAWS)

}  // namespace pursamere::cuda
