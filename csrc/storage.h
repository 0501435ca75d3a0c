// Half-precision storage types and their conversions, shared by host and device.
//
// Arithmetic is in float (double for double tensors); float16 and bfloat16 are only loaded and stored. Conversions use
// integer operations, and float operations that are exact or rounded as required, so they vectorize and are bitwise
// reproducible. Like all arithmetic, they rely on csrc/ieee_mode.h.
#pragma once

#include "arithmetic.h"

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
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 rebiases the exponent and normalizes subnormal values, exactly.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t result = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
  return bit_cast<float>(sign | result);
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

template <>
PURSAMERE_HD BFloat16 from_compute<BFloat16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return BFloat16{uint16_t(nan ? 0x7fc0u : rounded)};
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
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return Half{uint16_t(sign | result)};
}

}  // namespace pursamere
