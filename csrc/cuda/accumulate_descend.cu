// accumulate_descend: from per-draw gradients to the next point, clip_[0,1](P(x - eta u(g))); accumulate_descend_perturb
// perturbs it too.
#include "cuda/kernels.h"
#include "cuda/draw_sum.h"
#include "cuda/perturb_vector.h"
#include "cuda/samples.h"

namespace pursamere::cuda {
namespace {

// ||g|| for a unit step; the distance from the input for the L2 ball; the result. A pass leaves what it computed where
// the result will be, unless that is a half type: then the next one computes it again.
enum Pass { kGradient, kMove, kProject };
enum Sum { kGradientSquares, kDistanceSquares };

// One thread's elements of one sample.
template <class Image, class Network>
struct Descent {
  using A = compute_t<Image>;
  static constexpr int V = kVector<Network>;
  static constexpr bool kKept = kStoredAsComputed<Image>;

  const AccumulateDescend<Image, Network>& p;
  int64_t start;  // of the sample
  A scale;        // of the step

  __device__ __forceinline__ void gradient(A (&g)[V], int64_t first, int64_t count) const {
    sum_draws(g, p.gradient, start + first, count);
  }

  // x - eta u(g); a unit step's gradient was kept by its pass.
  __device__ __forceinline__ void moved(A (&value)[V], int64_t first, int64_t count) const {
    A g[V];
    if (kKept && p.step == Step::unit) {
      load<false>(g, p.next + start + first, count);
    } else {
      gradient(g, first, count);
    }
    load<false>(value, p.x + start + first, count);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = descend(p.step, value[i], g[i], scale);
  }

  __device__ __forceinline__ void keep(const A (&value)[V], int64_t first, int64_t count) const {
    if constexpr (kKept) store(p.next + start + first, value, count);
  }
};

template <bool kPerturbs, class Image, class Network>
__global__ void __launch_bounds__(threads_with(kSumRegisters<Network>), 1)
    descend_kernel(const AccumulateDescend<Image, Network> p, const SamplePlan plan,
                   const SampleSum<compute_t<Image>> gradient_squares,
                   const SampleSum<compute_t<Image>> distance_squares, const Passes passes) {
  using A = compute_t<Image>;
  constexpr int V = kVector<Network>;
  __shared__ SharedSums<A> shared;
  for (int64_t unit = blockIdx.x; unit < plan.batch * plan.parts; unit += gridDim.x) {
    SampleBlock<A, kGroupThreads<Network>> block(shared, plan, unit);
    Descent<Image, Network> descent{p, block.sample() * p.gradient.d, p.step_size};
    if (p.step == Step::unit && passes.include(kGradient)) {
      block.for_each_vector([&](int64_t first, int64_t count) {
        A gradient[V] = {};
        if (count > 0) descent.gradient(gradient, first, count);
        descent.keep(gradient, first, count);
#pragma unroll
        for (int i = 0; i < V; ++i) gradient[i] *= gradient[i];
        block.add(gradient_squares, kGradientSquares, gradient);
      });
    }
    if (passes.last == kGradient) continue;
    if (p.step == Step::unit)
      descent.scale = unit_scale(p.step_size, square_root(block.total(gradient_squares, kGradientSquares)));
    if (p.ball == Ball::l2 && passes.include(kMove)) {
      block.for_each_vector([&](int64_t first, int64_t count) {
        A value[V] = {}, input[V] = {};
        if (count > 0) {
          descent.moved(value, first, count);
          load<false>(input, p.input + descent.start + first, count);
        }
        descent.keep(value, first, count);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const A difference = value[i] - input[i];
          value[i] = i < count ? difference * difference : A(0);  // an infinite step makes NaN of absent elements
        }
        block.add(distance_squares, kDistanceSquares, value);
      });
    }
    if (!passes.include(kProject)) continue;
    const A shrink = p.ball == Ball::l2
                         ? l2_shrink(square_root(block.total(distance_squares, kDistanceSquares)), p.radius)
                         : A(1);
    block.for_each_vector([&](int64_t first, int64_t count) {
      if (count <= 0) return;
      A value[V], input[V];
      if (descent.kKept && p.ball == Ball::l2) {
        load<false>(value, p.next + descent.start + first, count);
      } else {
        descent.moved(value, first, count);
      }
      load<false>(input, p.input + descent.start + first, count);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A projected = p.ball == Ball::linf ? project_linf(value[i], input[i], p.radius)
                                                 : project_l2(value[i], input[i], shrink);
        value[i] = clip_to_pixels(projected);
      }
      store(p.next + descent.start + first, value, count);
      if constexpr (kPerturbs) perturb_vector(p.perturbed, value, p.gradient, block.sample(), first, count);
    });
  }
}

}  // namespace

template <class Image, class Network>
void run(const AccumulateDescend<Image, Network>& p, const Device& device) {
  const bool perturbs = p.perturbed.y != nullptr;
  const auto kernel = perturbs ? descend_kernel<true, Image, Network> : descend_kernel<false, Image, Network>;
  const Shape shape{perturbs ? "accumulate_descend_perturb" : "accumulate_descend", p.gradient.draws, p.gradient.batch,
                    p.gradient.d};
  const SamplePlan plan = plan_samples(shape.batch, shape.d, device.multiprocessors, kMaxGroups<compute_t<Image>>);
  const bool unit = p.step == Step::unit, l2 = p.ball == Ball::l2;
  const auto gradient_squares = sample_sum(plan, p.scratch, 0);
  const auto distance_squares = sample_sum(plan, p.scratch, unit ? 1 : 0);
  const auto pass = [&](Pass first, Pass last) {
    launch(device, shape, kernel, plan.batch * plan.parts, plan.groups * kGroupThreads<Network>, p, plan,
           gradient_squares, distance_squares, Passes{first, last});
  };
  if (plan.alone()) return pass(kGradient, kProject);
  if (unit) {
    pass(kGradient, kGradient);
    sum_upper_levels(device, shape, plan, gradient_squares);
  }
  if (l2) {
    pass(kMove, kMove);
    sum_upper_levels(device, shape, plan, distance_squares);
  }
  pass(kProject, kProject);
}

#define PURSAMERE_DESCEND(Image, Network) template void run(const AccumulateDescend<Image, Network>&, const Device&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_DESCEND)

}  // namespace pursamere::cuda
