// The per-sample gradient g = direct + sum over draws, in the order of the draws, used by both accumulating ops.
#pragma once

#include <algorithm>

#include "cpu/rows.h"

namespace pursamere {

void add_rows(float* sum, const float* a, const float* b, const float* c, const float* d, int64_t count);
void add_rows(double* sum, const double* a, const double* b, const double* c, const double* d, int64_t count);
void add_row(float* sum, const float* a, int64_t count);
void add_row(double* sum, const double* a, int64_t count);
void square_row(float* squares, const float* a, int64_t count);
void square_row(double* squares, const double* a, int64_t count);

// g for elements [first, first + count) of sample b.
template <class Image, class Network>
void sum_draws(compute_t<Image>* sum, const DrawSum<Image, Network>& p, int64_t b, int64_t first, int64_t count) {
  using A = compute_t<Image>;
  const int64_t offset = b * p.d + first;
  if (p.direct) {
    InputRow<Image> row;
    std::copy_n(row(p.direct + offset, count), count, sum);
  } else {
    std::fill(sum, sum + count, A(0));
  }
  const auto row_of = [&](int64_t k) { return p.per_draw + k * p.batch * p.d + offset; };
  InputRow<Network> rows[4];
  int64_t k = 0;
  for (; k + 4 <= p.draws; k += 4) {
    add_rows(sum, rows[0](row_of(k), count), rows[1](row_of(k + 1), count), rows[2](row_of(k + 2), count),
             rows[3](row_of(k + 3), count), count);
  }
  for (; k < p.draws; ++k) add_row(sum, rows[0](row_of(k), count), count);
}

}  // namespace pursamere
