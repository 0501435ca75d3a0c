#include "cuda/samples.h"

namespace pursamere::cuda {
namespace {

constexpr int kWarps = 8;

// A warp for every chunk of every sample.
template <class A>
__global__ void __launch_bounds__(32 * kWarps) sum_level_kernel(A* to, const A* from, int64_t batch, int64_t count) {
  const int64_t chunks = chunk_count(count);
  const int warp = int(threadIdx.x) / 32;
  for (int64_t unit = blockIdx.x * int64_t(kWarps) + warp; unit < batch * chunks; unit += gridDim.x * int64_t(kWarps)) {
    const int64_t sample = unit / chunks, first = unit % chunks * kChunk;
    const A* values = from + sample * count + first;
    const A sum = warp_sum<A>([&](int i) { return first + i < count ? values[i] : A(0); });
    if (threadIdx.x % 32 == 0) to[unit] = sum;
  }
}

}  // namespace

template <class A>
void sum_upper_levels(const Device& device, const Shape& shape, const SamplePlan& plan, const SampleSum<A>& sum) {
  A* level = sum.chunk_sums;
  if (!level) return;
  for (int64_t n = plan.chunks; n > kChunk; n = chunk_count(n)) {
    A* const next = level + plan.batch * n;
    const int64_t warps = plan.batch * chunk_count(n);
    launch(device, shape, sum_level_kernel<A>, (warps + kWarps - 1) / kWarps, 32 * kWarps, next, level, plan.batch, n);
    level = next;
  }
}

template void sum_upper_levels(const Device&, const Shape&, const SamplePlan&, const SampleSum<float>&);
template void sum_upper_levels(const Device&, const Shape&, const SamplePlan&, const SampleSum<double>&);

}  // namespace pursamere::cuda
