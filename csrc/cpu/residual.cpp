// residual: from the network's output to the ERE, its cotangent for the network, and the mean residual.
#include "residual.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/dispatch.h"
#include "cpu/noise_tile.h"
#include "cpu/rows.h"
#include "cpu/sample_sum.h"
#include "tensors.h"

namespace pursamere {
namespace {

// One draw of one chunk: adds the residual to `sum` and its square to `square_sum`, and writes the cotangent.
template <Prediction kind, class A>
PURSAMERE_HD void residual_row(A* __restrict cotangent, A* __restrict sum, A* __restrict square_sum,
                               const A* __restrict x, const A* __restrict prediction, const A* __restrict xi, A sigma,
                               A slope, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A noise = kind == Prediction::denoised ? A(0) : xi[i];
    const A r = residual_of<kind>(x[i], prediction[i], noise, sigma);
    cotangent[i] = slope * r;
    sum[i] += r;
    square_sum[i] = fused_multiply_add(r, r, square_sum[i]);
  }
}

template <class A>
PURSAMERE_HD void residual_row(Prediction kind, A* cotangent, A* sum, A* square_sum, const A* x, const A* prediction,
                               const A* xi, A sigma, A slope, int64_t count) {
  switch (kind) {
    case Prediction::denoised:
      return residual_row<Prediction::denoised>(cotangent, sum, square_sum, x, prediction, xi, sigma, slope, count);
    case Prediction::score:
      return residual_row<Prediction::score>(cotangent, sum, square_sum, x, prediction, xi, sigma, slope, count);
    case Prediction::noise:
      return residual_row<Prediction::noise>(cotangent, sum, square_sum, x, prediction, xi, sigma, slope, count);
  }
}

}  // namespace

PURSAMERE_VECTORIZED void residual_draw(Prediction kind, float* cotangent, float* sum, float* square_sum,
                                        const float* x, const float* prediction, const float* xi, float sigma,
                                        float slope, int64_t count) {
  residual_row(kind, cotangent, sum, square_sum, x, prediction, xi, sigma, slope, count);
}

PURSAMERE_VECTORIZED void residual_draw(Prediction kind, double* cotangent, double* sum, double* square_sum,
                                        const double* x, const double* prediction, const double* xi, double sigma,
                                        double slope, int64_t count) {
  residual_row(kind, cotangent, sum, square_sum, x, prediction, xi, sigma, slope, count);
}

namespace {

struct ResidualArguments {
  Prediction kind;
  double sigma;
  int64_t seed;
  bool antithetic;
  int64_t draws, batch, d;
};

template <class Image, class Network>
void write_residual(Network* cotangent, Image* drift, compute_t<Image>* ere, const Image* x, const Network* prediction,
                    const ResidualArguments& p) {
  using A = compute_t<Image>;
  const double draws = double(p.draws);
  const A slope = A(2.0 * residual_slope(p.kind, p.sigma) / draws);
  for_each_sample(p.batch, p.d, p.draws, [&](int64_t b) {
    const A total = sum_over_chunks<A>(p.d, p.draws, [&](int64_t first, int64_t count, A* square_sum) {
      A xi[kChunk];
      InputRow<Image> image_row;
      InputRow<Network> prediction_row;
      OutputRow<Network> cotangent_row;
      OutputRow<Image> drift_row;
      const int64_t offset = b * p.d + first;
      const A* image = image_row(x + offset, count);
      A* sum = drift_row.at(drift + offset);
      std::fill(sum, sum + count, A(0));
      std::fill(square_sum, square_sum + count, A(0));
      for (int64_t k = 0; k < p.draws; ++k) {
        const int64_t draw_offset = k * p.batch * p.d + offset;
        if (p.kind != Prediction::denoised) {
          noise_tile(xi, noise_key(p.seed), independent_draw(k, p.antithetic), first, count);
          if (draw_sign(k, p.antithetic) < 0)
            for (int64_t i = 0; i < count; ++i) xi[i] = -xi[i];
        }
        residual_draw(p.kind, cotangent_row.at(cotangent + draw_offset), sum, square_sum, image,
                      prediction_row(prediction + draw_offset, count), xi, A(p.sigma), slope, count);
        cotangent_row.finish(cotangent + draw_offset, count);
      }
      for (int64_t i = 0; i < count; ++i) sum[i] *= A(2.0 / draws);
      drift_row.finish(drift + offset, count);
    });
    ere[b] = total * A(1.0 / draws);
  });
}

std::tuple<Tensor, Tensor, Tensor> residual(const Tensor& x, const Tensor& prediction, std::string_view kind,
                                            double sigma, int64_t seed, bool antithetic) {
  check_batch("x", x);
  check_per_draw("prediction", prediction, x);
  check_draws(prediction.size(0), antithetic);
  const Tensor image = contiguous_input(x);
  const Tensor output = contiguous_input(prediction);
  Tensor cotangent = allocate_like(output);
  Tensor drift = allocate_like(image);
  Tensor ere = allocate_per_sample(image);
  const ResidualArguments arguments{
      parse_prediction(kind), sigma, seed, antithetic, prediction.size(0), x.size(0), sample_size(x)};
  dispatch_pair(x.scalar_type(), prediction.scalar_type(), "residual", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    write_residual(output_pointer<Network>(cotangent), output_pointer<Image>(drift),
                   output_pointer<compute_t<Image>>(ere), input_pointer<Image>(image), input_pointer<Network>(output),
                   arguments);
  });
  return {cotangent, drift, ere};
}

}  // namespace
}  // namespace pursamere

STABLE_TORCH_LIBRARY_IMPL(pursamere, CPU, m) { m.impl("residual", TORCH_BOX(&pursamere::residual)); }
