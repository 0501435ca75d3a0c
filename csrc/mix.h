// One element of residual's derivative, a linear map from values c_k for every draw and a value d that they share to
// (s u_k, t sum_k u_k) with u_k = g c_k + h d. Its transpose is the map with (g, h) and (s, t) exchanged.
#pragma once

#include "arithmetic.h"

namespace pursamere {

template <class A>
struct Mix {
  A g, h, s, t;

  PURSAMERE_HD A shared(A d) const { return h * d; }
  PURSAMERE_HD A mixed(A c, A shared) const { return fused_multiply_add(g, c, shared); }
};

}  // namespace pursamere
