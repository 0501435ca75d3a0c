// The floating-point mode that the library computes in: rounding to nearest, subnormal numbers kept, nothing trapped.
//
// The mode belongs to the thread, other libraries change it (torch.set_flush_denormal, fesetround), and a thread inherits
// the mode of the one that starts it. So whatever computes on a CPU does so in in_ieee_mode: csrc/dispatch.h sees to that
// for the calling thread, csrc/cpu/parallel.h for the others.
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

// MXCSR without its lowest six bits, which are no mode: they tell what exceptions have been raised.
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

// The direction of rounding, which is all that the standard library can set.
using FloatMode = int;
constexpr FloatMode kIeeeMode = FE_TONEAREST;
inline FloatMode float_mode() { return std::fegetround(); }
inline void set_float_mode(FloatMode mode) { std::fesetround(mode); }

#endif

// Within in_ieee_mode: the mode outside of it. Changes only where that is another one.
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

// Compilers do not know that arithmetic depends on the mode, and may move it across a change of the mode within one
// function. They cannot move it into or out of a function that they must not inline and whose operands and results are in
// memory, such as what a lambda captures by reference. Calls and changes of the mode, which both have side effects, keep
// their order.
template <class F>
__attribute__((noinline)) void call_apart(const void* f) {
  (*static_cast<const F*>(f))();
}

template <class Scope>
__attribute__((noinline)) void call_in(void (*call)(const void*), const void* f) {
  const Scope scope;
  call(f);
}

// Runs f(), which captures by reference, by the rules of IEEE 754's default mode, and puts the thread's own back.
template <class F>
void in_ieee_mode(const F& f) {
  call_in<IeeeScope>(&call_apart<F>, &f);
}

// Within in_ieee_mode: runs f(), which may start threads, in the mode outside of it, for them to inherit.
template <class F>
void in_callers_mode(const F& f) {
  call_in<CallersScope>(&call_apart<F>, &f);
}

}  // namespace pursamere
