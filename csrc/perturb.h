// One element of the network's input, y = scale (x + sigma xi) + shift, for every op that perturbs. What does not depend
// on the draw is apart, so that it is computed once for all draws.
#pragma once

#include "arithmetic.h"

namespace pursamere {

template <class A>
struct NetworkInput {
  A noise, scale, shift;  // noise = scale sigma

  PURSAMERE_HD A image(A x) const { return fused_multiply_add(scale, x, shift); }
  // `sign` of an antithetic draw: 1 or -1.
  PURSAMERE_HD A noisy(A image, A sign, A xi) const { return fused_multiply_add(sign * noise, xi, image); }
};

template <class A>
NetworkInput<A> network_input(double sigma, double scale, double shift) {
  // Adding -0 changes no bit, adding +0 would turn -0 into +0.
  return {A(scale * sigma), A(scale), shift == 0.0 ? A(-0.0) : A(shift)};
}

}  // namespace pursamere
