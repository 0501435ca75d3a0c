#include "cpu/rows.h"

namespace pursamere {

PURSAMERE_VECTORIZED void convert_row(const Half* __restrict from, float* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_compute(from[i]);
}

PURSAMERE_VECTORIZED void convert_row(const BFloat16* __restrict from, float* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_compute(from[i]);
}

PURSAMERE_VECTORIZED void convert_row(const float* __restrict from, Half* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_compute<Half>(from[i]);
}

PURSAMERE_VECTORIZED void convert_row(const float* __restrict from, BFloat16* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_compute<BFloat16>(from[i]);
}

}  // namespace pursamere
