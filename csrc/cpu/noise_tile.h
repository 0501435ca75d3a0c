// Consecutive elements of one noise draw.
#pragma once

#include "cpu/rows.h"
#include "gaussian.h"

namespace pursamere {

// Writes the normals of elements [first, first + count) of an independent draw; first is a multiple of 4, count at most
// kTile, and `out` has room for count rounded up to a multiple of 4. The second form widens them to double.
void noise_tile(float* out, NoiseKey key, uint32_t draw, int64_t first, int64_t count);
void noise_tile(double* out, NoiseKey key, uint32_t draw, int64_t first, int64_t count);

}  // namespace pursamere
