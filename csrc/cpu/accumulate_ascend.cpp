// accumulate_ascend: from per-draw gradients to the ascent point x + rho g / ||g|| and ||g||; accumulate_ascend_perturb
// perturbs the point too.
#include "cpu/backend.h"
#include "cpu/draw_sum.h"
#include "cpu/perturb_tile.h"
#include "cpu/sample_sum.h"

namespace pursamere {

PURSAMERE_VECTORIZED void ascend_row(float* point, const float* x, const float* gradient, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) point[i] = ascend(x[i], gradient[i], scale);
}

PURSAMERE_VECTORIZED void ascend_row(double* point, const double* x, const double* gradient, double scale,
                                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) point[i] = ascend(x[i], gradient[i], scale);
}

namespace cpu {

template <class Image, class Network>
void run(const AccumulateAscend<Image, Network>& p) {
  using A = compute_t<Image>;
  const DrawSum<Image, Network>& sum = p.gradient;
  for_each_sample(sum.batch, sum.d, sum.draws + p.perturbed.draws(), [&](int64_t b) {
    Image* out = p.point + b * sum.d;
    // First pass: the gradient, kept where the result will be, unless that is a half type: then it is summed again.
    p.norm[b] = square_root(sum_over_tiles<A>(sum.d, sum.draws, [&](int64_t first, int64_t count, A* squares) {
      OutputRow<Image> row;
      A* gradient = row.at(out + first);
      sum_draws(gradient, sum, b, first, count);
      square_row(squares, gradient, count);
    }));
    const A scale = unit_scale(p.radius, p.norm[b]);
    for_each_tile(sum.d, 1 + p.perturbed.draws(), [&](int64_t first, int64_t count) {
      InputRow<Image> image;
      OutputRow<Image> row;
      A* values = row.at(out + first);
      if constexpr (!kStoredAsComputed<Image>) sum_draws(values, sum, b, first, count);
      ascend_row(values, image(p.x + b * sum.d + first, count), values, scale, count);
      row.finish(out + first, count);
      perturb_tile(p.perturbed, out + first, sum, b, first, count);
    });
  });
}

#define PURSAMERE_ASCEND(Image, Network) template void run(const AccumulateAscend<Image, Network>&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_ASCEND)

}  // namespace cpu
}  // namespace pursamere
