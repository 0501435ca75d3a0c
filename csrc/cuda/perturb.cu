// perturb: y_k = scale (x + sigma xi_k) + shift. A thread generates the noise of a vector, or reads it from a bank, once
// for several samples, whose values it holds.
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/noise_vector.h"
#include "cuda/vectors.h"

namespace pursamere::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSamples = 4;  // at most, for one thread: few more registers, a quarter of the noise

struct PerturbPlan {
  int64_t tiles, sample_groups, draw_groups, draws_per_group;  // of independent draws
};

template <bool kFromBank, class Image, class Network>
__global__ void __launch_bounds__(kThreads) perturb_kernel(const Perturb<Image, Network> p, const PerturbPlan plan) {
  using A = compute_t<Image>;
  constexpr int V = kVector<Network>;
  const int64_t copies = p.antithetic ? 2 : 1, independent = p.draws / copies;
  for (int64_t unit = blockIdx.x; unit < plan.tiles * plan.sample_groups * plan.draw_groups; unit += gridDim.x) {
    const int64_t first = (unit % plan.tiles * blockDim.x + threadIdx.x) * V;
    const int64_t count = p.d - first;
    const int64_t sample = unit / plan.tiles % plan.sample_groups * kSamples;
    const int64_t draw_begin = unit / plan.tiles / plan.sample_groups * plan.draws_per_group;
    const int64_t draw_end = draw_begin + plan.draws_per_group < independent ? draw_begin + plan.draws_per_group
                                                                             : independent;
    A x[kSamples][V];
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      load<false>(x[s], p.x + (sample + s) * p.d + first, sample + s < p.batch ? count : 0);
#pragma unroll
      for (int i = 0; i < V; ++i) x[s][i] = p.input.image(x[s][i]);
    }
    for (int64_t draw = draw_begin; draw < draw_end; ++draw) {
      A xi[V];
      if constexpr (kFromBank) {
        float values[V];
        load<false>(values, p.bank + draw * p.d + first, count);
#pragma unroll
        for (int i = 0; i < V; ++i) xi[i] = A(values[i]);
      } else {
        noise_vector<V>(xi, noise_key(p.seed), uint32_t(draw), first);
      }
      for (int64_t copy = 0; copy < copies; ++copy) {
        const A sign = A(copy ? -1 : 1);
        Network* y = p.y + ((draw * copies + copy) * p.batch + sample) * p.d + first;
#pragma unroll
        for (int s = 0; s < kSamples; ++s) {
          A value[V];
#pragma unroll
          for (int i = 0; i < V; ++i) value[i] = p.input.noisy(x[s][i], sign, xi[i]);
          store(y + s * p.d, value, sample + s < p.batch ? count : 0);
        }
      }
    }
  }
}

}  // namespace

template <class Image, class Network>
void run(const Perturb<Image, Network>& p, const Device& device) {
  const int64_t vectors = (p.d + kVector<Network> - 1) / kVector<Network>;
  const int threads = threads_for(vectors, kThreads);
  const int64_t tiles = (vectors + threads - 1) / threads;
  const int64_t sample_groups = (p.batch + kSamples - 1) / kSamples;
  const int64_t independent = p.draws / (p.antithetic ? 2 : 1);
  // A unit keeps its samples for as many draws as it can while there are units for every multiprocessor.
  const int64_t wanted = 4 * device.multiprocessors;
  const int64_t draws_per_group =
      std::clamp<int64_t>(tiles * sample_groups * independent / wanted, 1, std::max<int64_t>(independent, 1));
  const PerturbPlan plan{tiles, sample_groups, (independent + draws_per_group - 1) / draws_per_group, draws_per_group};
  launch(device, {"perturb", p.draws, p.batch, p.d},
         p.bank ? perturb_kernel<true, Image, Network> : perturb_kernel<false, Image, Network>,
         plan.tiles * plan.sample_groups * plan.draw_groups, threads, p, plan);
}

#define PURSAMERE_PERTURB(Image, Network) template void run(const Perturb<Image, Network>&, const Device&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_PERTURB)

}  // namespace pursamere::cuda
