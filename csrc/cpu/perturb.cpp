// perturb: y_k = x + sigma xi_k, the noise generated on the way.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/noise_tile.h"
#include "cpu/rows.h"
#include "tensors.h"

namespace pursamere {

PURSAMERE_VECTORIZED void perturb_row(float* __restrict y, const float* __restrict x, const float* __restrict xi,
                                      float sigma, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = fused_multiply_add(sigma, xi[i], x[i]);
}

PURSAMERE_VECTORIZED void perturb_row(double* __restrict y, const double* __restrict x, const double* __restrict xi,
                                      double sigma, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = fused_multiply_add(sigma, xi[i], x[i]);
}

namespace {

struct PerturbArguments {
  double sigma;
  int64_t draws, seed;
  bool antithetic;
  int64_t batch, d;
};

template <class Image, class Network>
void write_perturbed(Network* y, const Image* x, const PerturbArguments& p) {
  using A = compute_t<Image>;
  const int64_t chunks = chunk_count(p.d);
  const int64_t copies = p.antithetic ? 2 : 1;
  const int64_t independent = p.draws / copies;
  // A unit of work is a chunk of an independent draw for a group of samples: its noise is generated once and serves the
  // whole group. Samples are split only when there are too few chunks to go round.
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t tiles = std::max<int64_t>(1, independent * chunks);
  const int64_t groups = std::clamp<int64_t>((wanted + tiles - 1) / tiles, 1, std::max<int64_t>(1, p.batch / 16));
  const int64_t unit_size = std::max<int64_t>(1, copies * p.batch / groups * std::min(p.d, kChunk));
  torch::stable::parallel_for(0, independent * chunks * groups, 1 + 32768 / unit_size, [&](int64_t begin, int64_t end) {
    A xi[kChunk];
    InputRow<Image> input;
    OutputRow<Network> output;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit % groups, chunk = unit / groups % chunks, draw = unit / groups / chunks;
      const int64_t first = chunk * kChunk, count = std::min(kChunk, p.d - first);
      noise_tile(xi, noise_key(p.seed), uint32_t(draw), first, count);
      for (int64_t b = p.batch * group / groups; b < p.batch * (group + 1) / groups; ++b) {
        const A* image = input(x + b * p.d + first, count);
        for (int64_t copy = 0; copy < copies; ++copy) {
          Network* target = y + ((draw * copies + copy) * p.batch + b) * p.d + first;
          perturb_row(output.at(target), image, xi, A(copy ? -p.sigma : p.sigma), count);
          output.finish(target, count);
        }
      }
    }
  });
}

Tensor perturb(const Tensor& x, double sigma, int64_t draws, int64_t seed, bool antithetic,
               std::optional<ScalarType> dtype) {
  check_batch("x", x);
  check_draws(draws, antithetic);
  const Tensor image = contiguous_input(x);
  const ScalarType network_dtype = dtype.value_or(x.scalar_type());
  Tensor y = allocate_draws(image, draws, network_dtype);
  const PerturbArguments arguments{sigma, draws, seed, antithetic, x.size(0), sample_size(x)};
  dispatch_pair(x.scalar_type(), network_dtype, "perturb", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    write_perturbed(output_pointer<Network>(y), input_pointer<Image>(image), arguments);
  });
  return y;
}

}  // namespace
}  // namespace pursamere

STABLE_TORCH_LIBRARY_IMPL(pursamere, CPU, m) { m.impl("perturb", TORCH_BOX(&pursamere::perturb)); }
