// The fixed noise xi: standard normals as a pure function of (seed, draw, element), by Philox and Box-Muller.
//
// Element e of draw k comes from the Philox block with counter (e / 4, k) and key = seed, lane e % 4. It
// does not depend on the batch or the launch geometry. log, sin and cos are polynomials of exactly rounded operations, so
// host and device agree bit for bit; their errors are stated in tests/test_noise.py.
#pragma once

#include "philox.h"

namespace pursamere {

// Natural logarithm of u in [2^-32, 1].
PURSAMERE_HD float log_unit(float u) {
  // u = 2^exponent * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const int32_t bits = bit_cast<int32_t>(u);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float f = bit_cast<float>(bits - exponent * 0x800000) - 1.0f;
  // log(1 + f) = f - f^2/2 + f^3 P(f), P minimax in relative error of the logarithm.
  float p = -0x1.38b4ccp-4f;
  p = fused_multiply_add(p, f, 0x1.055b46p-3f);
  p = fused_multiply_add(p, f, -0x1.0d8552p-3f);
  p = fused_multiply_add(p, f, 0x1.22da22p-3f);
  p = fused_multiply_add(p, f, -0x1.547244p-3f);
  p = fused_multiply_add(p, f, 0x1.99a008p-3f);
  p = fused_multiply_add(p, f, -0x1.000228p-2f);
  p = fused_multiply_add(p, f, 0x1.555554p-2f);
  const float square = f * f;
  const float e = float(exponent);
  float tail = fused_multiply_add(f * square, p, e * 0x1.90bfbep-11f);  // ln 2 = 0x1.628p-1 + 0x1.90bfbep-11
  tail = fused_multiply_add(-0.5f, square, tail);
  return fused_multiply_add(e, 0x1.628p-1f, f + tail);
}

struct SineCosine {
  float sine, cosine;
};

// Sine and cosine of 2 pi t for t in [-1/8, 1/8].
PURSAMERE_HD SineCosine sincos_eighth_turn(float t) {
  const float s = t * t;
  float p = 0x1.4be68ep+5f;
  p = fused_multiply_add(p, s, -0x1.32cb24p+6f);
  p = fused_multiply_add(p, s, 0x1.466bbcp+6f);
  p = fused_multiply_add(p, s, -0x1.4abbcep+5f);
  // 2 pi = 0x1.921fb6p+2 - 0x1.777a5cp-23
  const float sine = fused_multiply_add(t, 0x1.921fb6p+2f, t * fused_multiply_add(s, p, -0x1.777a5cp-23f));
  float q = 0x1.d9f7bap+5f;
  q = fused_multiply_add(q, s, -0x1.55c664p+6f);
  q = fused_multiply_add(q, s, 0x1.03c1dep+6f);
  q = fused_multiply_add(q, s, -0x1.3bd3ccp+4f);
  return SineCosine{sine, fused_multiply_add(s, q, 1.0f)};
}

// Maps a random word to a uniform number in [2^-32, 1], and as an angle in turns: quadrant and signed remainder.
PURSAMERE_HD float unit_interval(uint32_t word) {
  return fused_multiply_add(float(int32_t(word >> 1)), 0x1p-31f, 0x1p-32f);
}
PURSAMERE_HD uint32_t quadrant_of(uint32_t word) { return (word + 0x20000000u) >> 30; }
PURSAMERE_HD float remainder_of(uint32_t word) {
  return float(int32_t(word - (quadrant_of(word) << 30))) * 0x1p-32f;
}

// Box-Muller: maps two words to two independent standard normals.
PURSAMERE_HD void box_muller(uint32_t radius_word, uint32_t angle_word, float& first, float& second) {
  const float radius = square_root(-2.0f * log_unit(unit_interval(radius_word)));
  const SineCosine r = sincos_eighth_turn(remainder_of(angle_word));
  const uint32_t quadrant = quadrant_of(angle_word);
  const bool swap = quadrant & 1u;
  const float c = swap ? r.sine : r.cosine;
  const float s = swap ? r.cosine : r.sine;
  const uint32_t negate_cosine = ((quadrant + 1u) & 2u) << 30;  // quadrants 1 and 2
  const uint32_t negate_sine = (quadrant & 2u) << 30;           // quadrants 2 and 3
  first = radius * bit_cast<float>(bit_cast<uint32_t>(c) ^ negate_cosine);
  second = radius * bit_cast<float>(bit_cast<uint32_t>(s) ^ negate_sine);
}

struct NoiseKey {
  uint32_t low, high;
};

PURSAMERE_HD NoiseKey noise_key(int64_t seed) { return NoiseKey{uint32_t(seed), uint32_t(uint64_t(seed) >> 32)}; }

// The four normals of elements 4 * block .. 4 * block + 3 of one draw.
PURSAMERE_HD void gaussian4(NoiseKey key, uint32_t draw, uint64_t block, float& z0, float& z1, float& z2, float& z3) {
  const PhiloxWords w =
      philox4x32_10(PhiloxWords{{uint32_t(block), uint32_t(block >> 32), draw, 0u}}, key.low, key.high);
  box_muller(w.word[0], w.word[1], z0, z1);
  box_muller(w.word[2], w.word[3], z2, z3);
}

// Antithetic banks interleave +xi and -xi: draw k is (-1)^k times independent draw k / 2.
PURSAMERE_HD uint32_t independent_draw(int64_t draw, bool antithetic) { return uint32_t(antithetic ? draw / 2 : draw); }
PURSAMERE_HD float draw_sign(int64_t draw, bool antithetic) { return antithetic && (draw & 1) ? -1.0f : 1.0f; }

}  // namespace pursamere
