// Every op: its schema, and the function from tensors to tensors, which checks its arguments, allocates its results and
// hands a backend's kernels the problem to run. PURSAMERE_FOR_EACH_OP, at the end, lists the ops.
//
// Shapes: x [B, *], prediction and per_draw [K, B, *], `like` [*] (one sample). Python validates arguments
// (python/pursamere/functional.py); the checks here are the backstop.
//
// A Backend is constructed from a tensor on its device. It has run(problem) for each problem of problems.h, and
// scratch_values(batch, d, sums), the number of values of scratch memory that `sums` sums over each sample take.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "dispatch.h"
#include "problems.h"
#include "tensors.h"

namespace pursamere {

// The noise xi, [K, *], in the dtype and on the device of `like`, whose values are not read.
inline constexpr char noise_schema[] = "(Tensor like, int draws, int seed, bool antithetic) -> Tensor";

template <class Backend>
Tensor noise(const Tensor& like, int64_t draws, int64_t seed, bool antithetic) {
  check_draws(draws, antithetic);
  const Backend backend(like);
  Tensor out = allocate_draws(like, draws, like.scalar_type());
  dispatch_dtype(like.scalar_type(), "noise", [&](auto* stored) {
    using Stored = std::remove_pointer_t<decltype(stored)>;
    backend.run(Noise<Stored>{output_pointer<Stored>(out), draws, like.numel(), seed, antithetic});
  });
  return out;
}

// y_k = scale (x + sigma xi_k) + shift, [K, B, *], in `dtype` (by default that of x). `bank` has the independent draws of
// the noise, float32, [K, *] or, if antithetic, [K/2, *]; without it they are generated, the same bits.
inline constexpr char perturb_schema[] =
    "(Tensor x, float sigma, int draws, int seed, bool antithetic, ScalarType? dtype=None, float scale=1.0,"
    " float shift=0.0, Tensor? bank=None) -> Tensor";

template <class Backend>
Tensor perturb(const Tensor& x, double sigma, int64_t draws, int64_t seed, bool antithetic,
               std::optional<ScalarType> dtype, double scale, double shift, const std::optional<Tensor>& bank) {
  check_batch("x", x);
  check_draws(draws, antithetic);
  if (bank) check_bank(*bank, x, draws, antithetic);
  const Backend backend(x);
  const Tensor image = contiguous_input(x);
  const ScalarType network_dtype = dtype.value_or(x.scalar_type());
  Tensor y = allocate_draws(image, draws, network_dtype);
  std::optional<Tensor> values;
  if (bank) values = bank_input(*bank, x);
  dispatch_pair(x.scalar_type(), network_dtype, "perturb", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    backend.run(Perturb<Image, Network>{output_pointer<Network>(y), input_pointer<Image>(image),
                                        network_input<compute_t<Image>>(sigma, scale, shift), draws, x.size(0),
                                        sample_size(x), seed, antithetic,
                                        values ? input_pointer<float>(*values) : nullptr});
  });
  return y;
}

// r_k the residual (csrc/residual.h). Returns the cotangent input_scale dR/d(prediction), [K, B, *]; drift = (2/K) sum_k
// r_k, [B, *], which for a denoised prediction is dR/dx at fixed prediction; and R = (1/K) sum_k ||r_k||^2, [B]. What is not
// wanted is not computed, and comes as an empty tensor, [0].
inline constexpr char residual_schema[] =
    "(Tensor x, Tensor prediction, str kind, float sigma, int seed, bool antithetic, float scale=1.0, float gain=1.0,"
    " float shift=0.0, float input_scale=1.0, bool with_cotangent=True, bool with_drift=True, bool with_ere=True)"
    " -> (Tensor cotangent, Tensor drift, Tensor ere)";

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> residual(const Tensor& x, const Tensor& prediction, std::string_view kind_name,
                                            double sigma, int64_t seed, bool antithetic, double scale, double gain,
                                            double shift, double input_scale, bool with_cotangent, bool with_drift,
                                            bool with_ere) {
  check_batch("x", x);
  check_per_draw("prediction", prediction, x);
  check_draws(prediction.size(0), antithetic);
  const Prediction kind = parse_prediction(kind_name);
  const Backend backend(x);
  const Tensor image = contiguous_input(x);
  const Tensor output = contiguous_input(prediction);
  const int64_t draws = prediction.size(0), batch = x.size(0), d = sample_size(x);
  const Tensor cotangent = with_cotangent ? allocate_like(output) : allocate_nothing(output);
  const Tensor drift = with_drift ? allocate_like(image) : allocate_nothing(image);
  const WithScratch ere = with_ere ? allocate_per_sample(image, backend.scratch_values(batch, d, 1))
                                   : WithScratch{allocate_nothing(image), nullptr};
  dispatch_pair(x.scalar_type(), prediction.scalar_type(), "residual", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    using A = compute_t<Image>;
    backend.run(Residual<Image, Network>{
        with_cotangent ? output_pointer<Network>(cotangent) : nullptr,
        with_drift ? output_pointer<Image>(drift) : nullptr, with_ere ? output_pointer<A>(ere.tensor) : nullptr,
        input_pointer<Image>(image), input_pointer<Network>(output), residual_map<A>(kind, sigma, scale, gain, shift),
        A(2.0 * residual_slope(kind, sigma, scale, gain) * input_scale / double(draws)), A(2.0 / double(draws)),
        A(1.0 / double(draws)), draws, batch, d, seed, antithetic, static_cast<A*>(ere.scratch)});
  });
  return {cotangent, drift, ere.tensor};
}

// The derivative of residual (csrc/mix.h): u_k = g per_draw_k + h shared. Returns s u_k, [K, B, *], and t sum_k u_k, [B, *].
inline constexpr char residual_backward_schema[] =
    "(Tensor per_draw, Tensor shared, float g, float h, float s, float t) -> (Tensor out, Tensor sum)";

template <class Backend>
std::tuple<Tensor, Tensor> residual_backward(const Tensor& per_draw, const Tensor& shared, double g, double h, double s,
                                             double t) {
  check_batch("shared", shared);
  check_per_draw("per_draw", per_draw, shared);
  const Backend backend(shared);
  const Tensor values = contiguous_input(per_draw);
  const Tensor image = contiguous_input(shared);
  const Tensor out = allocate_like(values), sum = allocate_like(image);
  dispatch_pair(shared.scalar_type(), per_draw.scalar_type(), "residual_backward", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    using A = compute_t<Image>;
    backend.run(ResidualBackward<Image, Network>{
        output_pointer<Network>(out), output_pointer<Image>(sum), input_pointer<Network>(values),
        input_pointer<Image>(image), Mix<A>{A(g), A(h), A(s), A(t)}, per_draw.size(0), shared.size(0),
        sample_size(shared)});
  });
  return {out, sum};
}

// The inputs that both accumulating ops share, checked and made contiguous.
struct DrawSumTensors {
  Tensor x, per_draw;
  std::optional<Tensor> direct;

  DrawSumTensors(const Tensor& x_, const Tensor& per_draw_, const std::optional<Tensor>& direct_) : x(x_) {
    check_batch("x", x);
    check_per_draw("per_draw", per_draw_, x);
    if (direct_) {
      check_like("direct", *direct_, "x", x);
      direct = contiguous_input(*direct_);
    }
    x = contiguous_input(x_);
    per_draw = contiguous_input(per_draw_);
  }

  template <class Image, class Network>
  DrawSum<Image, Network> of() const {
    return {input_pointer<Network>(per_draw), direct ? input_pointer<Image>(*direct) : nullptr, per_draw.size(0),
            x.size(0), sample_size(x)};
  }
};

// sum_k per_draw_k in the order of the draws, [B, *], in `dtype`: the dtype of `per_draw` or, for half types, float32. Unlike
// torch.sum, whose order depends on the shape, it has the same bits in any batch.
inline constexpr char sum_draws_schema[] = "(Tensor per_draw, ScalarType dtype) -> Tensor";

template <class Backend>
Tensor sum_draws(const Tensor& per_draw, ScalarType dtype) {
  STD_TORCH_CHECK(per_draw.dim() >= 2 && per_draw.size(0) >= 1, "per_draw must have shape [draws, B, *]");
  const Backend backend(per_draw);
  const Tensor terms = contiguous_input(per_draw);
  const std::vector<int64_t> shape = shape_of(per_draw);
  Tensor out = allocate(per_draw, {shape.begin() + 1, shape.end()}, dtype);
  dispatch_pair(dtype, per_draw.scalar_type(), "sum_draws", [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    backend.run(SumDraws<Image, Network>{
        output_pointer<Image>(out),
        {input_pointer<Network>(terms), nullptr, per_draw.size(0), out.size(0), sample_size(out)}});
  });
  return out;
}

// The perturbation of an accumulating op's result: y_k = scale (result + sigma xi_k) + shift, [K, B, *], in the dtype of
// per_draw. `bank`, float32 [K, *], or [K/2, *] if antithetic, has the independent draws of the noise.
struct PerturbedTensors {
  Tensor bank, y;
  bool antithetic;
  double sigma, scale, shift;

  PerturbedTensors(const Tensor& x, ScalarType dtype, const Tensor& bank_, double sigma_, bool antithetic_,
                   double scale_, double shift_)
      : bank(bank_), antithetic(antithetic_), sigma(sigma_), scale(scale_), shift(shift_) {
    const int64_t draws = bank_.size(0) * (antithetic ? 2 : 1);
    check_draws(draws, antithetic);
    check_bank(bank_, x, draws, antithetic);
    y = allocate_draws(x, draws, dtype);
    bank = bank_input(bank_, x);
  }

  template <class Image, class Network>
  Perturbed<Image, Network> of() const {
    return {output_pointer<Network>(y), input_pointer<float>(bank), bank.size(0), antithetic,
            network_input<compute_t<Image>>(sigma, scale, shift)};
  }
};

// g = direct + sum_k per_draw_k. Returns x + ascent_radius g / ||g|| and ||g||, [B].
inline constexpr char accumulate_ascend_schema[] =
    "(Tensor x, Tensor per_draw, Tensor? direct, float ascent_radius) -> (Tensor point, Tensor norm)";

template <class Backend>
std::tuple<Tensor, Tensor> ascend_and_perturb(const char* op, const DrawSumTensors& inputs, double ascent_radius,
                                              const PerturbedTensors* perturbed) {
  const Tensor& x = inputs.x;
  const Backend backend(x);
  const WithScratch point = allocate_with_scratch(x, backend.scratch_values(x.size(0), sample_size(x), 1));
  Tensor norm = allocate_per_sample(x);
  dispatch_pair(x.scalar_type(), inputs.per_draw.scalar_type(), op, [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    using A = compute_t<Image>;
    AccumulateAscend<Image, Network> problem{output_pointer<Image>(point.tensor), output_pointer<A>(norm),
                                             input_pointer<Image>(x), inputs.of<Image, Network>(), A(ascent_radius),
                                             static_cast<A*>(point.scratch), {}};
    if (perturbed) problem.perturbed = perturbed->of<Image, Network>();
    backend.run(problem);
  });
  return {point.tensor, norm};
}

template <class Backend>
std::tuple<Tensor, Tensor> accumulate_ascend(const Tensor& x, const Tensor& per_draw,
                                             const std::optional<Tensor>& direct, double ascent_radius) {
  return ascend_and_perturb<Backend>("accumulate_ascend", {x, per_draw, direct}, ascent_radius, nullptr);
}

// accumulate_ascend, and its point perturbed.
inline constexpr char accumulate_ascend_perturb_schema[] =
    "(Tensor x, Tensor per_draw, Tensor? direct, float ascent_radius, Tensor bank, float sigma, bool antithetic,"
    " float scale=1.0, float shift=0.0) -> (Tensor point, Tensor norm, Tensor y)";

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> accumulate_ascend_perturb(const Tensor& x, const Tensor& per_draw,
                                                             const std::optional<Tensor>& direct, double ascent_radius,
                                                             const Tensor& bank, double sigma, bool antithetic,
                                                             double scale, double shift) {
  const DrawSumTensors inputs(x, per_draw, direct);
  const PerturbedTensors perturbed(inputs.x, per_draw.scalar_type(), bank, sigma, antithetic, scale, shift);
  const auto [point, norm] =
      ascend_and_perturb<Backend>("accumulate_ascend_perturb", inputs, ascent_radius, &perturbed);
  return {point, norm, perturbed.y};
}

// g as above. Returns clip(P(x - step_size u(g))), P around `start`; step_rule in {gradient, unit, sign}, norm in
// {linf, l2}.
inline constexpr char accumulate_descend_schema[] =
    "(Tensor x, Tensor start, Tensor per_draw, Tensor? direct, str step_rule, float step_size, str norm, float radius)"
    " -> Tensor";

template <class Backend>
Tensor descend_and_perturb(const char* op, const DrawSumTensors& inputs, const Tensor& start,
                           std::string_view step_rule, double step_size, std::string_view norm, double radius,
                           const PerturbedTensors* perturbed) {
  const Tensor& x = inputs.x;
  check_like("start", start, "x", x);
  const Backend backend(x);
  const Tensor origin = contiguous_input(start);
  const Step step = parse_step(step_rule);
  const Ball ball = parse_ball(norm);
  const int sums = (step == Step::unit) + (ball == Ball::l2);
  const WithScratch next = allocate_with_scratch(x, backend.scratch_values(x.size(0), sample_size(x), sums));
  dispatch_pair(x.scalar_type(), inputs.per_draw.scalar_type(), op, [&](auto* i, auto* n) {
    using Image = std::remove_pointer_t<decltype(i)>;
    using Network = std::remove_pointer_t<decltype(n)>;
    using A = compute_t<Image>;
    AccumulateDescend<Image, Network> problem{output_pointer<Image>(next.tensor), input_pointer<Image>(x),
                                              input_pointer<Image>(origin), inputs.of<Image, Network>(), step, ball,
                                              A(step_size), A(radius), static_cast<A*>(next.scratch), {}};
    if (perturbed) problem.perturbed = perturbed->of<Image, Network>();
    backend.run(problem);
  });
  return next.tensor;
}

template <class Backend>
Tensor accumulate_descend(const Tensor& x, const Tensor& start, const Tensor& per_draw,
                          const std::optional<Tensor>& direct, std::string_view step_rule, double step_size,
                          std::string_view norm, double radius) {
  return descend_and_perturb<Backend>("accumulate_descend", {x, per_draw, direct}, start, step_rule, step_size, norm,
                                      radius, nullptr);
}

// accumulate_descend, and its result perturbed.
inline constexpr char accumulate_descend_perturb_schema[] =
    "(Tensor x, Tensor start, Tensor per_draw, Tensor? direct, str step_rule, float step_size, str norm, float radius,"
    " Tensor bank, float sigma, bool antithetic, float scale=1.0, float shift=0.0) -> (Tensor next, Tensor y)";

template <class Backend>
std::tuple<Tensor, Tensor> accumulate_descend_perturb(const Tensor& x, const Tensor& start, const Tensor& per_draw,
                                                      const std::optional<Tensor>& direct, std::string_view step_rule,
                                                      double step_size, std::string_view norm, double radius,
                                                      const Tensor& bank, double sigma, bool antithetic, double scale,
                                                      double shift) {
  const DrawSumTensors inputs(x, per_draw, direct);
  const PerturbedTensors perturbed(inputs.x, per_draw.scalar_type(), bank, sigma, antithetic, scale, shift);
  Tensor next = descend_and_perturb<Backend>("accumulate_descend_perturb", inputs, start, step_rule, step_size, norm,
                                             radius, &perturbed);
  return {next, perturbed.y};
}

#define PURSAMERE_FOR_EACH_OP(DO)             \
  DO(noise)                                   \
  DO(perturb)                                 \
  DO(residual)                                \
  DO(residual_backward)                       \
  DO(sum_draws)                               \
  DO(accumulate_ascend)                       \
  DO(accumulate_ascend_perturb)               \
  DO(accumulate_descend)                      \
  DO(accumulate_descend_perturb)

inline void define_ops(torch::stable::detail::StableLibrary& library) {
#define PURSAMERE_DEFINE(op) library.def((std::string(#op) + op##_schema).c_str());
  PURSAMERE_FOR_EACH_OP(PURSAMERE_DEFINE)
#undef PURSAMERE_DEFINE
}

template <class Backend>
void register_ops(torch::stable::detail::StableLibrary& library) {
#define PURSAMERE_REGISTER(op) library.impl(#op, TORCH_BOX(&op<Backend>));
  PURSAMERE_FOR_EACH_OP(PURSAMERE_REGISTER)
#undef PURSAMERE_REGISTER
}

}  // namespace pursamere
