// Every op of the library, declared once. Shapes: x [B, *], prediction and per_draw [K, B, *], `like` [*] (one sample).
// Python validates (python/pursamere/functional.py); the checks in checks.h are the backstop.
#pragma once

#include <torch/csrc/stable/library.h>

namespace pursamere {

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  // The noise xi, [K, *], in the dtype and on the device of `like`, whose values are not read.
  m.def("noise(Tensor like, int draws, int seed, bool antithetic) -> Tensor");

  // y_k = x + sigma xi_k, [K, B, *], in `dtype` (by default that of x).
  m.def("perturb(Tensor x, float sigma, int draws, int seed, bool antithetic, ScalarType? dtype=None) -> Tensor");

  // r_k the residual (csrc/residual.h). Returns the cotangent dR/d(prediction), [K, B, *]; drift = (2/K) sum_k r_k,
  // [B, *], which for a denoised prediction is dR/dx at fixed prediction; and R = (1/K) sum_k ||r_k||^2, [B].
  m.def(
      "residual(Tensor x, Tensor prediction, str kind, float sigma, int seed, bool antithetic)"
      " -> (Tensor cotangent, Tensor drift, Tensor ere)");

  // g = direct + sum_k per_draw_k. Returns x + ascent_radius g / ||g|| and ||g||, [B].
  m.def(
      "accumulate_ascend(Tensor x, Tensor per_draw, Tensor? direct, float ascent_radius)"
      " -> (Tensor point, Tensor norm)");

  // g as above. Returns clip(P(x - step_size u(g))), P around `start`; step_rule in {gradient, unit, sign}, norm in
  // {linf, l2}.
  m.def(
      "accumulate_descend(Tensor x, Tensor start, Tensor per_draw, Tensor? direct, str step_rule, float step_size,"
      " str norm, float radius) -> Tensor");
}

}  // namespace pursamere
