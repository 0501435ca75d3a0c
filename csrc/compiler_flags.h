// Rejects compiler flags that change floating-point results. CMake rejects them by name (cmake/refuse_fast_math.cmake);
// this catches flags from compiler wrappers and configuration files if they define macros. nvcc defines none for device
// code.
#pragma once

#if defined(__FAST_MATH__)
#error "pursamere must be compiled without -ffast-math, -Ofast and -ffp-model=fast: results must have the same bits everywhere"
#elif defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "pursamere must be compiled without -ffinite-math-only: NaN and infinity must show"
#elif defined(__ASSOCIATIVE_MATH__)
#error "pursamere must be compiled without -fassociative-math and -funsafe-math-optimizations: sums have one order"
#elif defined(__RECIPROCAL_MATH__)
#error "pursamere must be compiled without -freciprocal-math: quotients must be correctly rounded"
#elif defined(__NO_SIGNED_ZEROS__)
#error "pursamere must be compiled without -fno-signed-zeros: results must have the same bits everywhere"
#elif defined(__GCC_IEC_559) && __GCC_IEC_559 == 0  // GCC's sum of the above and some more
#error "pursamere must be compiled without -fsingle-precision-constant and other flags contrary to IEEE 754"
#elif defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16  // 16 is about float16
#error "pursamere must be compiled without -mfpmath=387: float and double must be computed in their own precision"
#endif
