// accumulate_ascend: from per-draw gradients to the ascent point x + rho g / ||g|| and ||g||; accumulate_ascend_perturb
// perturbs the point too.
#include "cuda/kernels.h"
#include "cuda/draw_sum.h"
#include "cuda/perturb_vector.h"
#include "cuda/samples.h"

namespace pursamere::cuda {
namespace {

enum Pass { kGradient, kAscent };

template <bool kPerturbs, class Image, class Network>
__global__ void __launch_bounds__(threads_with(kSumRegisters<Network>), 1)
    ascend_kernel(const AccumulateAscend<Image, Network> p, const SamplePlan plan,
                  const SampleSum<compute_t<Image>> squares, const Passes passes) {
  using A = compute_t<Image>;
  constexpr int V = kVector<Network>;
  __shared__ SharedSums<A> shared;
  for (int64_t unit = blockIdx.x; unit < plan.batch * plan.parts; unit += gridDim.x) {
    SampleBlock<A, kGroupThreads<Network>> block(shared, plan, unit);
    const int64_t start = block.sample() * p.gradient.d;
    if (passes.include(kGradient)) {
      block.for_each_vector([&](int64_t first, int64_t count) {
        A gradient[V] = {};
        if (count > 0) sum_draws(gradient, p.gradient, start + first, count);
        // Kept where the result will be, unless that is a half type: then it is summed again.
        if constexpr (kStoredAsComputed<Image>) store(p.point + start + first, gradient, count);
#pragma unroll
        for (int i = 0; i < V; ++i) gradient[i] *= gradient[i];
        block.add(squares, 0, gradient);
      });
    }
    if (passes.include(kAscent)) {
      const A norm = square_root(block.total(squares, 0));
      if (block.first_thread()) p.norm[block.sample()] = norm;
      const A scale = unit_scale(p.radius, norm);
      block.for_each_vector([&](int64_t first, int64_t count) {
        if (count <= 0) return;
        A x[V], gradient[V];
        load<false>(x, p.x + start + first, count);
        if constexpr (kStoredAsComputed<Image>) {
          load<false>(gradient, p.point + start + first, count);
        } else {
          sum_draws(gradient, p.gradient, start + first, count);
        }
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = ascend(x[i], gradient[i], scale);
        store(p.point + start + first, x, count);
        if constexpr (kPerturbs) perturb_vector(p.perturbed, x, p.gradient, block.sample(), first, count);
      });
    }
  }
}

}  // namespace

template <class Image, class Network>
void run(const AccumulateAscend<Image, Network>& p, const Device& device) {
  const bool perturbs = p.perturbed.y != nullptr;
  const auto kernel = perturbs ? ascend_kernel<true, Image, Network> : ascend_kernel<false, Image, Network>;
  const Shape shape{perturbs ? "accumulate_ascend_perturb" : "accumulate_ascend", p.gradient.draws, p.gradient.batch,
                    p.gradient.d};
  const SamplePlan plan = plan_samples(shape.batch, shape.d, device.multiprocessors, kMaxGroups<compute_t<Image>>);
  const auto squares = sample_sum(plan, p.scratch, 0);
  const auto pass = [&](Pass first, Pass last) {
    launch(device, shape, kernel, plan.batch * plan.parts, plan.groups * kGroupThreads<Network>, p, plan, squares,
           Passes{first, last});
  };
  if (plan.alone()) return pass(kGradient, kAscent);
  pass(kGradient, kGradient);
  sum_upper_levels(device, shape, plan, squares);
  pass(kAscent, kAscent);
}

#define PURSAMERE_ASCEND(Image, Network) template void run(const AccumulateAscend<Image, Network>&, const Device&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_ASCEND)

}  // namespace pursamere::cuda
