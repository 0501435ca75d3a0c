// perturb: y_k = x + sigma xi_k, the noise generated on the way.
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"
#include "cpu/noise_tile.h"
#include "cpu/sample_groups.h"
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
  const int64_t copies = p.antithetic ? 2 : 1;
  const SampleGroups units(p.batch, p.d, p.draws / copies, 16);
  units.for_each(copies, [&](int64_t draw, int64_t first, int64_t count, int64_t b_first, int64_t b_last) {
    A xi[kTile];
    InputRow<Image> input;
    OutputRow<Network> output;
    noise_tile(xi, noise_key(p.seed), uint32_t(draw), first, count);
    for (int64_t b = b_first; b < b_last; ++b) {
      const A* image = input(x + b * p.d + first, count);
      for (int64_t copy = 0; copy < copies; ++copy) {
        Network* target = y + ((draw * copies + copy) * p.batch + b) * p.d + first;
        perturb_row(output.at(target), image, xi, A(copy ? -p.sigma : p.sigma), count);
        output.finish(target, count);
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
