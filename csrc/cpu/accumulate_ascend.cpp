// accumulate_ascend: from per-draw gradients to the ascent point x + rho g / ||g|| and ||g||.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/draw_sum.h"
#include "cpu/sample_sum.h"

namespace pursamere {

PURSAMERE_VECTORIZED void ascend_row(float* point, const float* x, const float* gradient, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) point[i] = ascend(x[i], gradient[i], scale);
}

PURSAMERE_VECTORIZED void ascend_row(double* point, const double* x, const double* gradient, double scale,
                                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) point[i] = ascend(x[i], gradient[i], scale);
}

namespace {

template <class Image, class Network>
void write_ascent(Image* point, compute_t<Image>* norm, const Image* x, const DrawSum<Image, Network>& sum,
                  double radius) {
  using A = compute_t<Image>;
  for_each_sample(sum.batch, sum.d, sum.draws, [&](int64_t b) {
    Image* out = point + b * sum.d;
    // First pass: the gradient, kept where the result will be, unless that is a half type: then it is summed again.
    norm[b] = square_root(sum_over_tiles<A>(sum.d, sum.draws, [&](int64_t first, int64_t count, A* squares) {
      OutputRow<Image> row;
      A* gradient = row.at(out + first);
      sum(gradient, b, first, count);
      square_row(squares, gradient, count);
    }));
    const A scale = unit_scale(A(radius), norm[b]);
    for_each_tile(sum.d, 1, [&](int64_t first, int64_t count) {
      InputRow<Image> image;
      OutputRow<Image> row;
      A* values = row.at(out + first);
      if constexpr (!kStoredAsComputed<Image>) sum(values, b, first, count);
      ascend_row(values, image(x + b * sum.d + first, count), values, scale, count);
      row.finish(out + first, count);
    });
  });
}

std::tuple<Tensor, Tensor> accumulate_ascend(const Tensor& x, const Tensor& per_draw,
                                             const std::optional<Tensor>& direct, double radius) {
  const DrawSumTensors inputs(x, per_draw, direct);
  Tensor point = allocate_like(inputs.x);
  Tensor norm = allocate_per_sample(inputs.x);
  dispatch_pair(x.scalar_type(), per_draw.scalar_type(), "accumulate_ascend", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    write_ascent(output_pointer<Image>(point), output_pointer<compute_t<Image>>(norm), input_pointer<Image>(inputs.x),
                 inputs.of<Image, Network>(), radius);
  });
  return {point, norm};
}

}  // namespace
}  // namespace pursamere

STABLE_TORCH_LIBRARY_IMPL(pursamere, CPU, m) {
  m.impl("accumulate_ascend", TORCH_BOX(&pursamere::accumulate_ascend));
}
