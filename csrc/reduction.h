// The one order in which the library sums over the elements of a sample, on every device.
//
// n values are cut into chunks of 1024. The sum of a chunk (missing values count as +0) is
//   column[c] = sum over r = 0..7, in order, of value[128 r + c]                    c = 0..127
//   lane[l]   = (column[4l] + column[4l+1]) + (column[4l+2] + column[4l+3])         l = 0..31
//   result    = lane[0] after lane[l] += lane[l + h] for h = 16, 8, 4, 2, 1.
// The chunk sums are again summed in this way until one value is left. On CUDA a warp sums a chunk: a lane the rows of its
// four columns, then shuffles.
#pragma once

#include "arithmetic.h"

namespace pursamere {

constexpr int64_t kChunk = 1024;

PURSAMERE_HD int64_t chunk_count(int64_t n) { return (n + kChunk - 1) / kChunk; }

// On the host, for contiguous values.
template <class A>
inline __attribute__((always_inline)) A sum_chunk(const A* value) {
  A column[128];
  for (int c = 0; c < 128; ++c) column[c] = value[c];
  for (int r = 1; r < 8; ++r)
    for (int c = 0; c < 128; ++c) column[c] += value[128 * r + c];
  A lane[32];
  for (int l = 0; l < 32; ++l) lane[l] = (column[4 * l] + column[4 * l + 1]) + (column[4 * l + 2] + column[4 * l + 3]);
  for (int h = 16; h > 0; h /= 2)
    for (int l = 0; l < h; ++l) lane[l] += lane[l + h];
  return lane[0];
}

}  // namespace pursamere
