// The floating-point mode that the library computes in: rounding to nearest, subnormal numbers kept, nothing trapped.
//
// The mode is per thread, inherited by new threads, and changed by other libraries (torch.set_flush_denormal,
// fesetround). So everything that computes on a CPU runs in in_ieee_mode: csrc/dispatch.h ensures this for the calling
// thread, csrc/cpu/parallel.h for the others.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace pursamere {

#if defined(__x86_64__)

// MXCSR without its lowest six bits, which are exception flags rather than modes.
using FloatMode = uint32_t;
constexpr FloatMode kIeeeMode = 0x1f80;
inline FloatMode float_mode() { return _mm_getcsr() & ~0x3fu; }
inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode | (_mm_getcsr() & 0x3fu)); }

#elif defined(__aarch64__)

// FPCR
using FloatMode = uint64_t;
constexpr FloatMode kIeeeMode = 0;
inline FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }

#else

// The rounding direction, which is all that the standard library can set.
using FloatMode = int;
constexpr FloatMode kIeeeMode = FE_TONEAREST;
inline FloatMode float_mode() { return std::fegetround(); }
inline void set_float_mode(FloatMode mode) { std::fesetround(mode); }

#endif

// Within in_ieee_mode: restores the outer mode, if different.
inline thread_local FloatMode callers_mode = kIeeeMode;

class IeeeScope {
 public:
  IeeeScope() : found_(float_mode()) {
    if (found_ == kIeeeMode) return;
    outer_ = std::exchange(callers_mode, found_);
    set_float_mode(kIeeeMode);
  }
  ~IeeeScope() {
    if (found_ == kIeeeMode) return;
    set_float_mode(found_);
    callers_mode = outer_;
  }
  IeeeScope(const IeeeScope&) = delete;
  IeeeScope& operator=(const IeeeScope&) = delete;

 private:
  const FloatMode found_;
  FloatMode outer_ = kIeeeMode;
};

class CallersScope {
 public:
  CallersScope() : callers_(callers_mode) {
    if (callers_ != kIeeeMode) set_float_mode(callers_);
  }
  ~CallersScope() {
    if (callers_ != kIeeeMode) set_float_mode(kIeeeMode);
  }
  CallersScope(const CallersScope&) = delete;
  CallersScope& operator=(const CallersScope&) = delete;

 private:
  const FloatMode callers_;
};

// Compilers don't know that arithmetic depends on the mode, and may move it across mode changes within a function. They
// can't move it into or out of a noinline function whose operands and results are in memory, such as captures by
// reference. Calls and mode changes have side effects and keep their order.
template <class F>
__attribute__((noinline)) void call_apart(const void* f) {
  (*static_cast<const F*>(f))();
}

template <class Scope>
__attribute__((noinline)) void call_in(void (*call)(const void*), const void* f) {
  const Scope scope;
  call(f);
}

// Runs f(), which must capture by reference, in IEEE 754's default mode, and restores the thread's mode.
template <class F>
void in_ieee_mode(const F& f) {
  call_in<IeeeScope>(&call_apart<F>, &f);
}

// Within in_ieee_mode: runs f() in the outer mode, so that threads started by f inherit it.
template <class F>
void in_callers_mode(const F& f) {
  call_in<CallersScope>(&call_apart<F>, &f);
}

}  // namespace pursamere
