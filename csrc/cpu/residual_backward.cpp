// residual_backward: values for every draw mixed with shared ones, and their sum over the draws.
#include "cpu/backend.h"
#include "cpu/sample_sum.h"

namespace pursamere {
namespace {

template <class A>
PURSAMERE_HD void scale_row_of(A* out, const A* values, A factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = factor * values[i];
}

template <class A>
PURSAMERE_HD void mix_row_of(A* __restrict out, A* __restrict sum, const A* __restrict per_draw,
                             const A* __restrict shared, Mix<A> mix, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A u = mix.mixed(per_draw[i], shared[i]);
    sum[i] += u;
    out[i] = mix.s * u;
  }
}

}  // namespace

PURSAMERE_VECTORIZED void scale_row(float* out, const float* values, float factor, int64_t count) {
  scale_row_of(out, values, factor, count);
}

PURSAMERE_VECTORIZED void scale_row(double* out, const double* values, double factor, int64_t count) {
  scale_row_of(out, values, factor, count);
}

PURSAMERE_VECTORIZED void mix_row(float* out, float* sum, const float* per_draw, const float* shared, Mix<float> mix,
                                  int64_t count) {
  mix_row_of(out, sum, per_draw, shared, mix, count);
}

PURSAMERE_VECTORIZED void mix_row(double* out, double* sum, const double* per_draw, const double* shared,
                                  Mix<double> mix, int64_t count) {
  mix_row_of(out, sum, per_draw, shared, mix, count);
}

namespace cpu {

template <class Image, class Network>
void run(const ResidualBackward<Image, Network>& p) {
  using A = compute_t<Image>;
  for_each_sample(p.batch, p.d, p.draws, [&](int64_t b) {
    for_each_tile(p.d, p.draws, [&](int64_t first, int64_t count) {
      const int64_t offset = b * p.d + first;
      A shared[kTile];
      InputRow<Image> shared_row;
      InputRow<Network> draw_row;
      OutputRow<Image> sum_row;
      OutputRow<Network> out_row;
      scale_row(shared, shared_row(p.shared + offset, count), p.mix.h, count);
      A* sum = sum_row.at(p.sum + offset);
      std::fill(sum, sum + count, A(0));
      for (int64_t k = 0; k < p.draws; ++k) {
        const int64_t position = k * p.batch * p.d + offset;
        mix_row(out_row.at(p.out + position), sum, draw_row(p.per_draw + position, count), shared, p.mix, count);
        out_row.finish(p.out + position, count);
      }
      scale_row(sum, sum, p.mix.t, count);
      sum_row.finish(p.sum + offset, count);
    });
  });
}

#define PURSAMERE_RESIDUAL_BACKWARD(Image, Network) template void run(const ResidualBackward<Image, Network>&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_RESIDUAL_BACKWARD)

}  // namespace cpu
}  // namespace pursamere
