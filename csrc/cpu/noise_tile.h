// One chunk of one draw of the noise: what the CPU ops generate at a time, small enough to stay in the first cache.
#pragma once

#include "gaussian.h"
#include "reduction.h"

namespace pursamere {

// Writes the normals of elements [first, first + count) of an independent draw; first is a multiple of 4, count at most
// kChunk, and `out` has room for count rounded up to a multiple of 4. The second form widens them to double.
void noise_tile(float* out, NoiseKey key, uint32_t draw, int64_t first, int64_t count);
void noise_tile(double* out, NoiseKey key, uint32_t draw, int64_t first, int64_t count);

}  // namespace pursamere
