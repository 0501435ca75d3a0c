#include "cpu/sample_sum.h"

namespace pursamere {
namespace {

template <class A>
PURSAMERE_HD void sum_chunks_of(A* sums, A* values, int64_t count) {
  const int64_t chunks = chunk_count(count);
  for (int64_t i = count; i < chunks * kChunk; ++i) values[i] = A(0);
  for (int64_t c = 0; c < chunks; ++c) sums[c] = sum_chunk(values + c * kChunk);
}

}  // namespace

PURSAMERE_VECTORIZED void sum_chunks(float* sums, float* values, int64_t count) { sum_chunks_of(sums, values, count); }

PURSAMERE_VECTORIZED void sum_chunks(double* sums, double* values, int64_t count) {
  sum_chunks_of(sums, values, count);
}

}  // namespace pursamere
