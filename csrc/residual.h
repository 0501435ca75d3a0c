// The reconstruction residual r = x - D of one element (equation M1), D = gain D_kind(y, scale p) + shift being the denoised
// image at y = x + sigma xi that follows from the network's output p, for each kind of prediction q = scale p: a denoised
// image, D_kind = q; a score, D_kind = y + sigma^2 q; or a noise prediction, D_kind = y - sigma q.
//
// For the latter two with gain = 1, x cancels: it is left out, which avoids loss of precision for small sigma. What does not
// depend on the draw is apart, so that it is computed once for all draws.
#pragma once

#include "arithmetic.h"

namespace pursamere {

enum class Prediction { denoised, score, noise };

// A denoised prediction needs no noise:  r = factor p + image(x).  The others:  r = factor (inner p + xi_sign xi) + image(x).
template <class A>
struct ResidualMap {
  bool has_noise;
  A factor, inner, xi_sign;
  A x_factor, constant;  // image(x) = x_factor x + constant; if x_factor is 0, x need not be read

  PURSAMERE_HD A image(A x) const { return x_factor == A(0) ? constant : fused_multiply_add(x_factor, x, constant); }

  template <bool kNoise>
  PURSAMERE_HD A residual(A image, A prediction, A xi) const {
    return fused_multiply_add(factor, kNoise ? fused_multiply_add(inner, prediction, xi_sign * xi) : prediction, image);
  }
};

template <class A>
ResidualMap<A> residual_map(Prediction kind, double sigma, double scale, double gain, double shift) {
  const A constant(-shift);  // -0 for no shift, which changes no bit when it is added
  switch (kind) {
    case Prediction::denoised: return {false, A(-gain * scale), A(0), A(0), A(1), constant};
    case Prediction::score: return {true, A(-gain * sigma), A(sigma * scale), A(1), A(1.0 - gain), constant};
    default: return {true, A(gain * sigma), A(scale), A(-1), A(1.0 - gain), constant};
  }
}

// dr / dp, the same for every element.
inline double residual_slope(Prediction kind, double sigma, double scale, double gain) {
  return gain * scale * (kind == Prediction::denoised ? -1.0 : (kind == Prediction::score ? -sigma * sigma : sigma));
}

}  // namespace pursamere
