// Sharpness-aware minimization, one element at a time (equation M8):
//   ascent   x~ = x + rho g / ||g||
//   descent  x+ = clip_[0,1](P(x - eta u(g~))), P the projection onto the ball of radius r around the input x0.
#pragma once

#include "arithmetic.h"

namespace pursamere {

enum class Step { gradient, unit, sign };
enum class Ball { linf, l2 };

// length / norm, or 0 if the gradient is 0. A NaN or overflowed norm gives NaN rather than 0, which would silently skip
// the step.
template <class A>
PURSAMERE_HD A unit_scale(A length, A norm) {
  return norm == A(0) ? A(0) : divide(length, norm) + (norm - norm);
}

template <class A>
PURSAMERE_HD A ascend(A x, A gradient, A scale) {
  return fused_multiply_add(scale, gradient, x);
}

template <class A>
PURSAMERE_HD A descend(Step step, A x, A gradient, A scale) {
  return fused_multiply_add(-scale, step == Step::sign ? sign(gradient) : gradient, x);
}

template <class A>
PURSAMERE_HD A project_linf(A moved, A input, A radius) {
  return clamp(moved, input - radius, input + radius);
}

// distance = ||moved - input||; points inside the ball are returned unchanged.
template <class A>
PURSAMERE_HD A l2_shrink(A distance, A radius) {
  return distance > radius ? divide(radius, distance) + (distance - distance) : A(1);
}

template <class A>
PURSAMERE_HD A project_l2(A moved, A input, A shrink) {
  return shrink == A(1) ? moved : fused_multiply_add(shrink, moved - input, input);
}

template <class A>
PURSAMERE_HD A clip_to_pixels(A value) {
  return clamp(value, A(0), A(1));
}

}  // namespace pursamere
