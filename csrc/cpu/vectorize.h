// Marks a function to be compiled for several x86-64 levels, the best one being chosen when the library is loaded.
// All versions give the same bits: the code uses exactly rounded operations only, and contraction is off.
#pragma once

#if defined(PURSAMERE_TARGET_CLONES)
#define PURSAMERE_VECTORIZED __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PURSAMERE_VECTORIZED __attribute__((noinline))
#endif
