// accumulate_descend: from per-draw gradients to the next point, clip_[0,1](P(x - eta u(g))); accumulate_descend_perturb
// perturbs it too.
#include "cpu/backend.h"
#include "cpu/draw_sum.h"
#include "cpu/perturb_tile.h"
#include "cpu/sample_sum.h"

namespace pursamere {
namespace {

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

namespace cpu {

template <class Image, class Network>
void run(const AccumulateDescend<Image, Network>& p) {
  using A = compute_t<Image>;
  const DrawSum<Image, Network>& sum = p.gradient;
  // A pass over the tiles may leave its result where the final one will be, unless that is a half type: then the next
  // pass computes it again.
  constexpr bool kKept = kStoredAsComputed<Image>;
  for_each_sample(sum.batch, sum.d, sum.draws + p.perturbed.draws(), [&](int64_t b) {
    const int64_t offset = b * sum.d;
    A scale = p.step_size;
    if (p.step == Step::unit) {
      const A square = sum_over_tiles<A>(sum.d, sum.draws, [&](int64_t first, int64_t count, A* squares) {
        OutputRow<Image> row;
        A* gradient = row.at(p.next + offset + first);
        sum_draws(gradient, sum, b, first, count);
        square_row(squares, gradient, count);
      });
      scale = unit_scale(scale, square_root(square));
    }
    const auto move = [&](A* values, bool summed, int64_t first, int64_t count) {
      InputRow<Image> image;
      if (!summed) sum_draws(values, sum, b, first, count);
      descend_row(values, image(p.x + offset + first, count), values, p.step, scale, count);
    };
    const bool summed = kKept && p.step == Step::unit;
    A shrink = A(1);
    if (p.ball == Ball::l2) {
      const A square = sum_over_tiles<A>(sum.d, sum.draws, [&](int64_t first, int64_t count, A* squares) {
        InputRow<Image> origin;
        OutputRow<Image> row;
        A* moved = row.at(p.next + offset + first);
        move(moved, summed, first, count);
        const A* start = origin(p.input + offset + first, count);
        for (int64_t i = 0; i < count; ++i) squares[i] = moved[i] - start[i];
        square_row(squares, squares, count);
      });
      shrink = l2_shrink(square_root(square), p.radius);
    }
    for_each_tile(sum.d, sum.draws + p.perturbed.draws(), [&](int64_t first, int64_t count) {
      InputRow<Image> origin;
      OutputRow<Image> row;
      A* values = row.at(p.next + offset + first);
      const A* start = origin(p.input + offset + first, count);
      if (p.ball == Ball::linf) {
        move(values, summed, first, count);
        project_linf_row(values, start, p.radius, count);
      } else {
        if (!kKept) move(values, false, first, count);
        for (int64_t i = 0; i < count; ++i) values[i] = clip_to_pixels(project_l2(values[i], start[i], shrink));
      }
      row.finish(p.next + offset + first, count);
      perturb_tile(p.perturbed, p.next + offset + first, sum, b, first, count);
    });
  });
}

#define PURSAMERE_DESCEND(Image, Network) template void run(const AccumulateDescend<Image, Network>&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_DESCEND)

}  // namespace cpu
}  // namespace pursamere
