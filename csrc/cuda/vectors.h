// Vectorized accesses: 16 bytes or a multiple per thread, if alignment permits.
#pragma once

#include <cuda_runtime.h>

#include "storage.h"

namespace pursamere::cuda {

// Consecutive elements per thread: 16 bytes of the network's type, 4 elements being a block of noise.
template <class Network>
inline constexpr int kVector = sizeof(Network) == 2 ? 8 : 4;

constexpr int kDrawsAtOnce = 4;  // with reads in flight at the same time

__device__ __forceinline__ bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// 16-byte accesses and the packing of values are explicit, since the compiler splits plain assignments into narrow
// accesses. kStreaming: read once, so caches need not keep it.
template <bool kStreaming>
__device__ __forceinline__ uint4 load16(const void* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  if constexpr (kStreaming) {
    asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  } else {
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  }
  return v;
#else
  return *static_cast<const uint4*>(from);
#endif
}

__device__ __forceinline__ void store16(void* to, uint4 v) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
  *static_cast<uint4*>(to) = v;
#endif
}

template <int V, class Stored>
__device__ __forceinline__ void pack(uint32_t (&words)[V * sizeof(Stored) / 4], const compute_t<Stored> (&values)[V]) {
  if constexpr (sizeof(Stored) == 2) {
#pragma unroll
    for (int i = 0; i < V; i += 2) words[i / 2] = from_compute_pair<Stored>(values[i], values[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Stored stored = from_compute<Stored>(values[i]);
      if constexpr (sizeof(Stored) == 4) {
        words[i] = bit_cast<uint32_t>(stored);
      } else {
        words[2 * i] = uint32_t(bit_cast<uint64_t>(stored));
        words[2 * i + 1] = uint32_t(bit_cast<uint64_t>(stored) >> 32);
      }
    }
  }
}

template <int V, class Stored>
__device__ __forceinline__ void unpack(compute_t<Stored> (&values)[V], const uint32_t (&words)[V * sizeof(Stored) / 4]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if constexpr (sizeof(Stored) == 2) {
      values[i] = to_compute(Stored{uint16_t(words[i / 2] >> (i % 2 * 16))});
    } else if constexpr (sizeof(Stored) == 4) {
      values[i] = bit_cast<Stored>(words[i]);
    } else {
      values[i] = bit_cast<Stored>(uint64_t(words[2 * i + 1]) << 32 | words[2 * i]);
    }
  }
}

// Reads V values, of which `count` exist (none if negative); the others are 0.
template <bool kStreaming, int V, class Stored>
__device__ __forceinline__ void load(compute_t<Stored> (&values)[V], const Stored* from, int64_t count) {
  if (count >= V && aligned(from)) {
    constexpr int kWords = V * int(sizeof(Stored)) / 4;
    uint32_t words[kWords];
#pragma unroll
    for (int w = 0; w < kWords; w += 4) {
      const uint4 four = load16<kStreaming>(reinterpret_cast<const char*>(from) + 4 * w);
      words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
    }
    unpack<V, Stored>(values, words);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = i < count ? to_compute(from[i]) : compute_t<Stored>(0);
  }
}

template <int V, class Stored>
__device__ __forceinline__ void store(Stored* to, const compute_t<Stored> (&values)[V], int64_t count) {
  if (count >= V && aligned(to)) {
    constexpr int kWords = V * int(sizeof(Stored)) / 4;
    uint32_t words[kWords];
    pack<V, Stored>(words, values);
#pragma unroll
    for (int w = 0; w < kWords; w += 4)
      store16(reinterpret_cast<char*>(to) + 4 * w, make_uint4(words[w], words[w + 1], words[w + 2], words[w + 3]));
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (i < count) to[i] = from_compute<Stored>(values[i]);
  }
}

}  // namespace pursamere::cuda
