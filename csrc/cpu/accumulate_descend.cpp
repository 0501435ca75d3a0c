// accumulate_descend: from per-draw gradients to the next point, clip_[0,1](P(x - eta u(g))).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/draw_sum.h"
#include "cpu/sample_sum.h"

namespace pursamere {
namespace {

struct DescentRule {
  Step step;
  double step_size;
  Ball ball;
  double radius;
};

template <class A>
PURSAMERE_HD void descend_row_of(A* out, const A* x, const A* gradient, Step step, A scale, int64_t count) {
  if (step == Step::sign) {
    for (int64_t i = 0; i < count; ++i) out[i] = descend(Step::sign, x[i], gradient[i], scale);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = descend(Step::gradient, x[i], gradient[i], scale);
  }
}

template <class A>
PURSAMERE_HD void project_linf_row_of(A* moved, const A* input, A radius, int64_t count) {
  for (int64_t i = 0; i < count; ++i) moved[i] = clip_to_pixels(project_linf(moved[i], input[i], radius));
}

}  // namespace

PURSAMERE_VECTORIZED void descend_row(float* out, const float* x, const float* gradient, Step step, float scale,
                                      int64_t count) {
  descend_row_of(out, x, gradient, step, scale, count);
}

PURSAMERE_VECTORIZED void descend_row(double* out, const double* x, const double* gradient, Step step, double scale,
                                      int64_t count) {
  descend_row_of(out, x, gradient, step, scale, count);
}

PURSAMERE_VECTORIZED void project_linf_row(float* moved, const float* input, float radius, int64_t count) {
  project_linf_row_of(moved, input, radius, count);
}

PURSAMERE_VECTORIZED void project_linf_row(double* moved, const double* input, double radius, int64_t count) {
  project_linf_row_of(moved, input, radius, count);
}

namespace {

template <class Image, class Network>
void write_descent(Image* next, const Image* x, const Image* input, const DrawSum<Image, Network>& sum,
                   const DescentRule& rule) {
  using A = compute_t<Image>;
  // A pass over the tiles may leave its result where the final one will be, unless that is a half type: then the next
  // pass computes it again.
  constexpr bool kKept = kStoredAsComputed<Image>;
  for_each_sample(sum.batch, sum.d, sum.draws, [&](int64_t b) {
    const int64_t offset = b * sum.d;
    A scale = A(rule.step_size);
    if (rule.step == Step::unit) {
      const A square = sum_over_tiles<A>(sum.d, sum.draws, [&](int64_t first, int64_t count, A* squares) {
        OutputRow<Image> row;
        A* gradient = row.at(next + offset + first);
        sum(gradient, b, first, count);
        square_row(squares, gradient, count);
      });
      scale = unit_scale(scale, square_root(square));
    }
    const auto move = [&](A* values, bool summed, int64_t first, int64_t count) {
      InputRow<Image> image;
      if (!summed) sum(values, b, first, count);
      descend_row(values, image(x + offset + first, count), values, rule.step, scale, count);
    };
    const bool summed = kKept && rule.step == Step::unit;
    A shrink = A(1);
    if (rule.ball == Ball::l2) {
      const A square = sum_over_tiles<A>(sum.d, sum.draws, [&](int64_t first, int64_t count, A* squares) {
        InputRow<Image> origin;
        OutputRow<Image> row;
        A* moved = row.at(next + offset + first);
        move(moved, summed, first, count);
        const A* start = origin(input + offset + first, count);
        for (int64_t i = 0; i < count; ++i) squares[i] = moved[i] - start[i];
        square_row(squares, squares, count);
      });
      shrink = l2_shrink(square_root(square), A(rule.radius));
    }
    for_each_tile(sum.d, sum.draws, [&](int64_t first, int64_t count) {
      InputRow<Image> origin;
      OutputRow<Image> row;
      A* values = row.at(next + offset + first);
      const A* start = origin(input + offset + first, count);
      if (rule.ball == Ball::linf) {
        move(values, summed, first, count);
        project_linf_row(values, start, A(rule.radius), count);
      } else {
        if (!kKept) move(values, false, first, count);
        for (int64_t i = 0; i < count; ++i) values[i] = clip_to_pixels(project_l2(values[i], start[i], shrink));
      }
      row.finish(next + offset + first, count);
    });
  });
}

Tensor accumulate_descend(const Tensor& x, const Tensor& input, const Tensor& per_draw,
                          const std::optional<Tensor>& direct, std::string_view step, double step_size,
                          std::string_view ball, double radius) {
  const DrawSumTensors inputs(x, per_draw, direct);
  check_like("input", input, "x", x);
  const Tensor origin = contiguous_input(input);
  const DescentRule rule{parse_step(step), step_size, parse_ball(ball), radius};
  Tensor next = allocate_like(inputs.x);
  dispatch_pair(x.scalar_type(), per_draw.scalar_type(), "accumulate_descend", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    write_descent(output_pointer<Image>(next), input_pointer<Image>(inputs.x), input_pointer<Image>(origin),
                  inputs.of<Image, Network>(), rule);
  });
  return next;
}

}  // namespace
}  // namespace pursamere

STABLE_TORCH_LIBRARY_IMPL(pursamere, CPU, m) {
  m.impl("accumulate_descend", TORCH_BOX(&pursamere::accumulate_descend));
}
