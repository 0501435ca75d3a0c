// Checks only what the kernels rely on, as a backstop behind Python's validation. Raises RuntimeError.
#pragma once

#include <string_view>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "residual.h"
#include "sam_step.h"

namespace pursamere {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_draws(int64_t draws, bool antithetic) {
  STD_TORCH_CHECK(draws >= 1 && draws <= 0xffffffffLL, "draws must be in [1, 2^32), got ", draws);
  STD_TORCH_CHECK(!antithetic || draws % 2 == 0, "draws must be even with antithetic noise, got ", draws);
}

inline void check_batch(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1, name, " must have a batch dimension, got a scalar");
}

inline void check_like(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), name, " must have the dtype of ", other_name);
  STD_TORCH_CHECK(tensor.device() == other.device(), name, " must be on the device of ", other_name);
  bool same = tensor.dim() == other.dim();
  for (int64_t i = 0; same && i < other.dim(); ++i) same = tensor.size(i) == other.size(i);
  STD_TORCH_CHECK(same, name, " must have the shape of ", other_name);
}

// A tensor [K, B, *] against x [B, *]: K >= 1, and the dtype of x or, if x is float32, a half type.
inline void check_per_draw(const char* name, const Tensor& per_draw, const Tensor& x) {
  bool same = per_draw.dim() == x.dim() + 1 && per_draw.size(0) >= 1;
  for (int64_t i = 0; same && i < x.dim(); ++i) same = per_draw.size(i + 1) == x.size(i);
  STD_TORCH_CHECK(same, name, " must have shape [draws, *x.shape] with draws >= 1");
  STD_TORCH_CHECK(per_draw.device() == x.device(), name, " must be on the device of x");
  STD_TORCH_CHECK(per_draw.scalar_type() == x.scalar_type() || x.scalar_type() == ScalarType::Float, name,
                  " must have the dtype of x, or x must be float32");
}

// A bank of the independent draws of the noise, [draws, *] or, if antithetic, [draws / 2, *], against x [B, *].
inline void check_bank(const Tensor& bank, const Tensor& x, int64_t draws, bool antithetic) {
  bool same = bank.dim() == x.dim() && bank.size(0) == draws / (antithetic ? 2 : 1);
  for (int64_t i = 1; same && i < x.dim(); ++i) same = bank.size(i) == x.size(i);
  STD_TORCH_CHECK(same, "bank must have shape [independent draws, *x.shape[1:]]");
  STD_TORCH_CHECK(bank.device() == x.device(), "bank must be on the device of x");
  STD_TORCH_CHECK(bank.scalar_type() == ScalarType::Float, "bank must be float32");
}

inline Prediction parse_prediction(std::string_view kind) {
  if (kind == "denoised") return Prediction::denoised;
  if (kind == "score") return Prediction::score;
  STD_TORCH_CHECK(kind == "noise", "kind must be 'denoised', 'score' or 'noise'");
  return Prediction::noise;
}

inline Step parse_step(std::string_view step) {
  if (step == "gradient") return Step::gradient;
  if (step == "unit") return Step::unit;
  STD_TORCH_CHECK(step == "sign", "step_rule must be 'gradient', 'unit' or 'sign'");
  return Step::sign;
}

inline Ball parse_ball(std::string_view ball) {
  if (ball == "linf") return Ball::linf;
  STD_TORCH_CHECK(ball == "l2", "norm must be 'linf' or 'l2'");
  return Ball::l2;
}

}  // namespace pursamere
