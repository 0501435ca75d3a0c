// Compiles a function for several x86-64 levels and selects one at load time. All versions give the same bits, since the
// code uses exactly rounded operations only and contraction is off.
#pragma once

#if defined(PURSAMERE_TARGET_CLONES)
#define PURSAMERE_VECTORIZED __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PURSAMERE_VECTORIZED __attribute__((noinline))
#endif
