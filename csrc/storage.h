// Half-precision storage types and their conversions, shared by host and device.
//
// Arithmetic is in float (double for double tensors); float16 and bfloat16 are only loaded and stored. Conversions use
// integer operations, and float operations that are exact or rounded as required, so they vectorize and are bitwise
// reproducible. Like all arithmetic, they rely on csrc/ieee_mode.h. GPUs of sm_80 and later have instructions that give
// the same bits. Every NaN becomes the half type's 0x7fff, as in these instructions.
#pragma once

#include "arithmetic.h"

#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
#define PURSAMERE_CONVERT_IN_HARDWARE 1
#endif
#endif

namespace pursamere {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type used to compute with a stored type.
template <class Stored>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class Stored>
using compute_t = typename ComputeType<Stored>::type;

PURSAMERE_HD float to_compute(float value) { return value; }
PURSAMERE_HD double to_compute(double value) { return value; }

PURSAMERE_HD float to_compute(BFloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

PURSAMERE_HD float to_compute(Half value) {
#if defined(PURSAMERE_CONVERT_IN_HARDWARE)
  float converted;
  asm("cvt.f32.f16 %0, %1;" : "=f"(converted) : "h"(value.bits));
  return converted;
#else
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 rebiases the exponent and normalizes subnormal values, exactly.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t result = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
  return bit_cast<float>(sign | result);
#endif
}

template <class Stored>
PURSAMERE_HD Stored from_compute(compute_t<Stored> value);

template <>
PURSAMERE_HD float from_compute<float>(float value) {
  return value;
}

template <>
PURSAMERE_HD double from_compute<double>(double value) {
  return value;
}

// Two values in the halves of a word, as the hardware converts them.
template <class Stored>
PURSAMERE_HD uint32_t from_compute_pair(float low, float high);

#if defined(PURSAMERE_CONVERT_IN_HARDWARE)

template <>
PURSAMERE_HD uint32_t from_compute_pair<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <>
PURSAMERE_HD uint32_t from_compute_pair<Half>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <>
PURSAMERE_HD BFloat16 from_compute<BFloat16>(float value) {
  return BFloat16{uint16_t(from_compute_pair<BFloat16>(value, 0.0f))};
}

template <>
PURSAMERE_HD Half from_compute<Half>(float value) {
  return Half{uint16_t(from_compute_pair<Half>(value, 0.0f))};
}

#else

template <>
PURSAMERE_HD BFloat16 from_compute<BFloat16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return BFloat16{uint16_t(nan ? 0x7fffu : rounded)};
}

template <>
PURSAMERE_HD Half from_compute<Half>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: drop 13 mantissa bits, to nearest, ties to even, and rebias the exponent; a carry out of the
  // mantissa correctly raises the exponent, up to infinity.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 aligns the float's last mantissa bit with 2^-24, the spacing of subnormals.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x47800000u ? 0x7c00u : result;
  return Half{uint16_t(magnitude > 0x7f800000u ? 0x7fffu : sign | result)};
}

template <class Stored>
PURSAMERE_HD uint32_t from_compute_pair(float low, float high) {
  return from_compute<Stored>(low).bits | uint32_t(from_compute<Stored>(high).bits) << 16;
}

#endif

}  // namespace pursamere
