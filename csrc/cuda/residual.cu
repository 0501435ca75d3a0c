// residual: from the network's output to its cotangent, the drift, and the ERE.
#include "cuda/kernels.h"
#include "cuda/noise_vector.h"
#include "cuda/samples.h"
#include "cuda/tiles.h"
#include "cuda/vectors.h"

namespace pursamere::cuda {
namespace {

enum Pass { kResiduals, kTotals };

// What the elements [first, first + V) of sample b contribute; `square_sum` is left with sum_k r_k^2.
template <bool kNoise, int V, class Image, class Network>
__device__ __forceinline__ void residual_vector(const Residual<Image, Network>& p, int64_t b, int64_t first,
                                                int64_t count, compute_t<Image> (&square_sum)[V]) {
  using A = compute_t<Image>;
  const int64_t offset = b * p.d + first, stride = p.batch * p.d;
  A image[V] = {}, sum[V] = {};
  if (p.map.x_factor != A(0)) load<false>(image, p.x + offset, count);
#pragma unroll
  for (int i = 0; i < V; ++i) image[i] = p.map.image(image[i]);
  // Read everything before the first write, since the compiler can't move reads above writes.
  for (int64_t k = 0; k < p.draws; k += kDrawsAtOnce) {
    A prediction[kDrawsAtOnce][V];
#pragma unroll
    for (int j = 0; j < kDrawsAtOnce; ++j)
      load<true>(prediction[j], p.prediction + (k + j) * stride + offset, k + j < p.draws ? count : 0);
    A xi[V] = {};
#pragma unroll
    for (int j = 0; j < kDrawsAtOnce; ++j) {
      if (k + j >= p.draws) break;
      if (kNoise && !(p.antithetic && j % 2))
        noise_vector<V>(xi, noise_key(p.seed), independent_draw(k + j, p.antithetic), first);
      const A sign = A(draw_sign(k + j, p.antithetic));
      A cotangent[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A r = p.map.template residual<kNoise>(image[i], prediction[j][i], sign * xi[i]);
        cotangent[i] = p.slope * r;
        sum[i] += r;
        square_sum[i] = fused_multiply_add(r, r, square_sum[i]);
      }
      if (p.cotangent) store(p.cotangent + (k + j) * stride + offset, cotangent, count);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    sum[i] *= p.drift_factor;
    if (i >= count) square_sum[i] = A(0);  // noise of elements past the end
  }
  if (p.drift) store(p.drift + offset, sum, count);
}

// Without the ERE there is nothing to sum over a sample.
template <bool kNoise, class Image, class Network>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<Network>)
    elementwise_kernel(const Residual<Image, Network> p, int64_t tiles) {
  constexpr int V = kVector<Network>;
  for (int64_t unit = blockIdx.x; unit < p.batch * tiles; unit += gridDim.x) {
    const int64_t first = (unit % tiles * blockDim.x + threadIdx.x) * V;
    compute_t<Image> unused[V] = {};
    if (first < p.d) residual_vector<kNoise>(p, unit / tiles, first, p.d - first, unused);
  }
}

// The fewest that suffice.
template <bool kNoise, class Network>
inline constexpr int kRegisters = sizeof(Network) == 4 ? 80 : (sizeof(Network) == 2 && !kNoise ? 96 : 128);

template <bool kNoise, class Image, class Network>
__global__ void __launch_bounds__(threads_with(kRegisters<kNoise, Network>), 1)
    residual_kernel(const Residual<Image, Network> p, const SamplePlan plan, const SampleSum<compute_t<Image>> squares,
                    const Passes passes) {
  using A = compute_t<Image>;
  __shared__ SharedSums<A> shared;
  for (int64_t unit = blockIdx.x; unit < plan.batch * plan.parts; unit += gridDim.x) {
    SampleBlock<A, kGroupThreads<Network>> block(shared, plan, unit);
    if (passes.include(kResiduals)) {
      block.for_each_vector([&](int64_t first, int64_t count) {
        A square_sum[kVector<Network>] = {};
        if (count > 0) residual_vector<kNoise>(p, block.sample(), first, count, square_sum);
        block.add(squares, 0, square_sum);
      });
    }
    if (passes.include(kTotals)) {
      const A total = block.total(squares, 0);
      if (block.first_thread()) p.ere[block.sample()] = total * p.ere_factor;
    }
  }
}

template <bool kNoise, class Image, class Network>
void run_with(const Residual<Image, Network>& p, const Device& device) {
  const Shape shape{"residual", p.draws, p.batch, p.d};
  if (!p.ere) {
    const Tiles tiles = tiles_of<Network>(p.d);
    return launch(device, shape, elementwise_kernel<kNoise, Image, Network>, p.batch * tiles.count, tiles.threads, p,
                  tiles.count);
  }
  constexpr int kThreads = kGroupThreads<Network>;
  const SamplePlan plan = plan_samples(p.batch, p.d, device.multiprocessors, kMaxGroups<compute_t<Image>>);
  const auto squares = sample_sum(plan, p.scratch, 0);
  const auto kernel = residual_kernel<kNoise, Image, Network>;
  launch(device, shape, kernel, plan.batch * plan.parts, plan.groups * kThreads, p, plan, squares,
         Passes{kResiduals, plan.alone() ? kTotals : kResiduals});
  if (plan.alone()) return;
  sum_upper_levels(device, shape, plan, squares);
  launch(device, shape, kernel, plan.batch, kThreads, p, one_block_each(plan), squares, Passes{kTotals, kTotals});
}

}  // namespace

template <class Image, class Network>
void run(const Residual<Image, Network>& p, const Device& device) {
  return p.map.has_noise ? run_with<true>(p, device) : run_with<false>(p, device);
}

#define PURSAMERE_RESIDUAL(Image, Network) template void run(const Residual<Image, Network>&, const Device&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_RESIDUAL)

}  // namespace pursamere::cuda
