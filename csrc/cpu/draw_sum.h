// The per-sample gradient g = direct + sum over draws, in the order of the draws: what both accumulating ops start with.
#pragma once

#include <optional>

#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "tensors.h"

namespace pursamere {

void add_rows(float* sum, const float* a, const float* b, const float* c, const float* d, int64_t count);
void add_rows(double* sum, const double* a, const double* b, const double* c, const double* d, int64_t count);
void add_row(float* sum, const float* a, int64_t count);
void add_row(double* sum, const double* a, int64_t count);
void square_row(float* squares, const float* a, int64_t count);
void square_row(double* squares, const double* a, int64_t count);

template <class Image, class Network>
struct DrawSum {
  using A = compute_t<Image>;

  const Network* per_draw;  // [K, B, d]
  const Image* direct;      // [B, d], or null
  int64_t draws, batch, d;

  // g for elements [first, first + count) of sample b.
  void operator()(A* sum, int64_t b, int64_t first, int64_t count) const {
    const int64_t offset = b * d + first;
    if (direct) {
      InputRow<Image> row;
      std::copy_n(row(direct + offset, count), count, sum);
    } else {
      std::fill(sum, sum + count, A(0));
    }
    const auto row_of = [&](int64_t k) { return per_draw + k * batch * d + offset; };
    InputRow<Network> rows[4];
    int64_t k = 0;
    for (; k + 4 <= draws; k += 4) {
      add_rows(sum, rows[0](row_of(k), count), rows[1](row_of(k + 1), count), rows[2](row_of(k + 2), count),
               rows[3](row_of(k + 3), count), count);
    }
    for (; k < draws; ++k) add_row(sum, rows[0](row_of(k), count), count);
  }
};

// The arguments of an accumulating op, checked and made contiguous.
struct DrawSumTensors {
  Tensor x, per_draw;
  std::optional<Tensor> direct;
  int64_t batch, d;

  DrawSumTensors(const Tensor& x_, const Tensor& per_draw_, const std::optional<Tensor>& direct_);

  template <class Image, class Network>
  DrawSum<Image, Network> of() const {
    return {input_pointer<Network>(per_draw), direct ? input_pointer<Image>(*direct) : nullptr, per_draw.size(0), batch,
            d};
  }
};

}  // namespace pursamere
