#include "cpu/draw_sum.h"

namespace pursamere {
namespace {

template <class A>
PURSAMERE_HD void add_rows_of(A* __restrict sum, const A* __restrict a, const A* __restrict b, const A* __restrict c,
                              const A* __restrict d, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] = (((sum[i] + a[i]) + b[i]) + c[i]) + d[i];
}

template <class A>
PURSAMERE_HD void add_row_of(A* __restrict sum, const A* __restrict a, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += a[i];
}

template <class A>
PURSAMERE_HD void square_row_of(A* squares, const A* a, int64_t count) {  // which may be the same row
  for (int64_t i = 0; i < count; ++i) squares[i] = a[i] * a[i];
}

}  // namespace

PURSAMERE_VECTORIZED void add_rows(float* sum, const float* a, const float* b, const float* c, const float* d,
                                   int64_t count) {
  add_rows_of(sum, a, b, c, d, count);
}

PURSAMERE_VECTORIZED void add_rows(double* sum, const double* a, const double* b, const double* c, const double* d,
                                   int64_t count) {
  add_rows_of(sum, a, b, c, d, count);
}

PURSAMERE_VECTORIZED void add_row(float* sum, const float* a, int64_t count) { add_row_of(sum, a, count); }
PURSAMERE_VECTORIZED void add_row(double* sum, const double* a, int64_t count) { add_row_of(sum, a, count); }
PURSAMERE_VECTORIZED void square_row(float* squares, const float* a, int64_t count) { square_row_of(squares, a, count); }
PURSAMERE_VECTORIZED void square_row(double* squares, const double* a, int64_t count) {
  square_row_of(squares, a, count);
}

}  // namespace pursamere
