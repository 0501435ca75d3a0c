// What PTX that is translated to C++ (ptx_translator.py) runs on: types, values of registers, and what takes more than an
// expression. The functions that threads meet in are in runtime.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

using pred = bool;
using b16 = uint16_t;
using b32 = uint32_t;
using b64 = uint64_t;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
using b8 = uint8_t;

struct TranslatedKernel {
  const char* name;
  void (*function)(const unsigned char* const* parameters);  // what one thread does
  int max_threads;                                           // in a block
  int64_t runs;
};
extern TranslatedKernel translated[];
extern const int translated_count;

// One component of the index and the size of a block and of the grid.
u32 ptx_tid(int axis);
u32 ptx_ntid(int axis);
u32 ptx_ctaid(int axis);
u32 ptx_nctaid(int axis);

unsigned char* ptx_shared_memory(u64 size);  // of this block; all ones, which are NaN, when a block starts
void ptx_barrier();
void ptx_warp_barrier(u32 mask);
u32 ptx_shuffle(u32 value, u32 lane_mask, u32 clamp, u32 mask);

namespace {

// The bits of a register as a value. Integers may be narrower than their register, and are for predicates 0 or not.
template <class Value, class Register>
inline Value value_of(Register bits) {
  if constexpr (std::is_floating_point_v<Value>) {
    static_assert(sizeof(Value) == sizeof(Register), "a float needs a register of its size");
    Value value;
    memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    return static_cast<Value>(bits);
  }
}

// The other way round. Narrower integers are extended by their sign, if they have one.
template <class Register, class Value>
inline void assign(Register& bits, Value value) {
  if constexpr (std::is_floating_point_v<Value>) {
    static_assert(sizeof(Value) == sizeof(Register), "a float needs a register of its size");
    memcpy(&bits, &value, sizeof value);
  } else {
    bits = static_cast<Register>(value);
  }
}

inline void check_alignment(const void* address, u64 bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) throw std::runtime_error("ptx: a misaligned address");
}

template <class T, int kCount>
inline void ptx_load(T (&values)[kCount], const unsigned char* from) {
  check_alignment(from, sizeof values);
  memcpy(values, from, sizeof values);
}

template <class T, int kCount>
inline void ptx_store(unsigned char* to, const T (&values)[kCount]) {
  check_alignment(to, sizeof values);
  memcpy(to, values, sizeof values);
}

inline unsigned char* in_shared(unsigned char* shared, u64 shared_size, u64 offset, u64 size) {
  if (offset > shared_size || size > shared_size - offset) throw std::runtime_error("ptx: outside of shared memory");
  return shared + offset;
}

// Distances beyond the width shift everything out.
template <class T>
inline T shift_left(T x, u32 distance) {
  return distance < 8 * sizeof(T) ? T(u64(x) << distance) : T(0);
}

template <class T>
inline T shift_right(T x, u32 distance) {
  if (distance >= 8 * sizeof(T)) return x < 0 ? T(-1) : T(0);
  return T(x >> distance);
}

template <class T>
inline T divisor(T dividend, T divisor) {
  const bool overflow = std::is_signed_v<T> && divisor == T(-1) && dividend < 0 && dividend == T(-u64(dividend));
  if (divisor == 0 || overflow) throw std::runtime_error("ptx: an integer division whose result is not defined");
  return divisor;
}

template <class T>
inline bool unordered(T a, T b) {
  return std::isnan(a) || std::isnan(b);
}

// The number if the other operand is a NaN; -0 is less than +0.
template <class T>
inline T minimum(T a, T b) {
  if (std::isnan(a)) return b;
  return std::isnan(b) || a < b || (a == b && std::signbit(a)) ? a : b;
}

template <class T>
inline T low_bits(u32 count) {
  return T(shift_left(T(1), count) - T(1));
}

template <class T>
inline T bits_at(T x, u32 position, u32 count) {
  return shift_right(x, position & 0xff) & low_bits<T>(count & 0xff);
}

template <class T>
inline T with_bits_at(T bits, T x, u32 position, u32 count) {
  const T mask = shift_left(low_bits<T>(count & 0xff), position & 0xff);
  return (x & ~mask) | (shift_left(bits, position & 0xff) & mask);
}

// Four of the bytes of a and b; the top bit of a selector repeats the byte's sign.
inline u32 permuted_bytes(u32 a, u32 b, u32 selectors) {
  const u64 bytes = u64(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 selector = selectors >> 4 * i & 0xf;
    u32 byte = u32(bytes >> 8 * (selector & 7)) & 0xff;
    if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}

// To 16 bits, ties to even. A NaN becomes the one that PTX calls canonical.
inline u16 round_to_bfloat16(float x) {
  if (std::isnan(x)) return 0x7fff;
  u32 bits;
  memcpy(&bits, &x, sizeof bits);
  return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline u16 round_to_half(float x) {
  if (std::isnan(x)) return 0x7fff;
  u32 bits;
  memcpy(&bits, &x, sizeof bits);
  const u32 sign = bits >> 16 & 0x8000;
  const float magnitude = std::abs(x);
  if (magnitude >= 65520.0f) return u16(sign | 0x7c00);                                   // infinite
  if (magnitude < 0x1p-14f) return u16(sign | u32(std::nearbyint(magnitude * 0x1p24f)));  // subnormal: multiples of 2^-24
  bits &= 0x7fffffff;
  return u16(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));  // the exponent's bias is 112 less
}

inline float bfloat16_to_float(u16 half) {
  const u32 bits = u32(half) << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline float half_to_float(u16 half) {
  const u32 exponent = half >> 10 & 31, fraction = half & 0x3ff;
  float magnitude = exponent ? std::ldexp(float(1024 + fraction), int(exponent) - 25) : std::ldexp(float(fraction), -24);
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  return half & 0x8000 ? -magnitude : magnitude;
}

}  // namespace
