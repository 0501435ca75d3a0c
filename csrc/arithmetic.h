// Exactly rounded scalar operations, shared by host and device.
//
// Every function here is correctly rounded under IEEE 754 (or exact), so a formula written with them gives the same
// bits on every processor, provided that the compiler contracts nothing (build with -ffp-contract=off and -fmad=false) and
// that the processor is in IEEE 754's default mode (csrc/ieee_mode.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "compiler_flags.h"

#if defined(__CUDACC__)
#define PURSAMERE_HD __host__ __device__ __forceinline__
#else
#define PURSAMERE_HD inline __attribute__((always_inline))
#endif

namespace pursamere {

PURSAMERE_HD float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

PURSAMERE_HD double fused_multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

PURSAMERE_HD float square_root(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}

PURSAMERE_HD double square_root(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return __builtin_sqrt(a);
#endif
}

PURSAMERE_HD float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

PURSAMERE_HD double divide(double a, double b) { return a / b; }

template <class To, class From>
PURSAMERE_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// Comparisons rather than fmin and fmax: those would turn a NaN into a bound and hide it.
template <class A>
PURSAMERE_HD A clamp(A value, A low, A high) {
  const A raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// -1, 0 or 1; NaN stays NaN.
template <class A>
PURSAMERE_HD A sign(A value) {
  return value > A(0) ? A(1) : (value < A(0) ? A(-1) : value * A(0));
}

}  // namespace pursamere
