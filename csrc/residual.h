// The reconstruction residual r = x - D(x + sigma xi) of one element, for each kind of network output (equation M1):
// a denoised image D, a score s with D = y + sigma^2 s, or a noise prediction eps with D = y - sigma eps.
// For the latter two x cancels, which avoids loss of precision for small sigma.
#pragma once

#include "arithmetic.h"

namespace pursamere {

enum class Prediction { denoised, score, noise };

// dr / d(prediction), the same for every element.
PURSAMERE_HD double residual_slope(Prediction kind, double sigma) {
  return kind == Prediction::denoised ? -1.0 : (kind == Prediction::score ? -sigma * sigma : sigma);
}

template <Prediction kind, class A>
PURSAMERE_HD A residual_of(A x, A prediction, A xi, A sigma) {
  if constexpr (kind == Prediction::denoised) return x - prediction;
  if constexpr (kind == Prediction::score) return -sigma * fused_multiply_add(sigma, prediction, xi);
  if constexpr (kind == Prediction::noise) return sigma * (prediction - xi);
}

}  // namespace pursamere
