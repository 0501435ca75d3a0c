#include "cpu/noise_tile.h"

#include "cpu/vectorize.h"

namespace pursamere {

PURSAMERE_VECTORIZED void noise_blocks(float* __restrict out, NoiseKey key, uint32_t draw, uint64_t first_block,
                                       int32_t blocks) {
  // Sixteen blocks at a time, a lane each: a loop that compilers turn into vector code, Philox included.
  constexpr int32_t kLanes = 16;
  for (int32_t start = 0; start < blocks; start += kLanes) {
    float z[4][kLanes];
    for (int32_t lane = 0; lane < kLanes; ++lane) {
      gaussian4(key, draw, first_block + uint64_t(start + lane), z[0][lane], z[1][lane], z[2][lane], z[3][lane]);
    }
    const int32_t used = blocks - start < kLanes ? blocks - start : kLanes;
    for (int32_t lane = 0; lane < used; ++lane)
      for (int32_t i = 0; i < 4; ++i) out[4 * (start + lane) + i] = z[i][lane];
  }
}

void noise_tile(float* out, NoiseKey key, uint32_t draw, int64_t first, int64_t count) {
  noise_blocks(out, key, draw, uint64_t(first) / 4, int32_t((count + 3) / 4));
}

void noise_tile(double* out, NoiseKey key, uint32_t draw, int64_t first, int64_t count) {
  float narrow[kTile];
  noise_tile(narrow, key, draw, first, count);
  for (int64_t i = 0; i < count; ++i) out[i] = double(narrow[i]);
}

}  // namespace pursamere
