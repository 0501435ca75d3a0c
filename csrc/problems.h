// What a kernel is given: for every op the pointers, sizes and parameters, in the types that it is compiled for, and the
// kernels of both backends.
//
// Images have the type Image, inputs and outputs of the network the type Network. Everything is contiguous. Shapes: images
// [B, d], network tensors [K, B, d], per-sample values [B]. csrc/ops.h fills these in from tensors; csrc/cpu/ and
// csrc/cuda/ define `run`, each with one file for each op.
#pragma once

#include "mix.h"
#include "perturb.h"
#include "residual.h"
#include "sam_step.h"
#include "storage.h"

namespace pursamere {

namespace cuda {
struct Device;
}

// Declares the kernels for a problem, which is a template over the given types.
#define PURSAMERE_KERNELS(TYPES, ...)                         \
  namespace cpu {                                             \
  template <PURSAMERE_UNPACK TYPES>                           \
  void run(const __VA_ARGS__& problem);                       \
  }                                                           \
  namespace cuda {                                            \
  template <PURSAMERE_UNPACK TYPES>                           \
  void run(const __VA_ARGS__& problem, const Device& device); \
  }
#define PURSAMERE_UNPACK(...) __VA_ARGS__

template <class Stored>
struct Noise {
  Stored* out;  // [K, d]
  int64_t draws, d, seed;
  bool antithetic;
};
PURSAMERE_KERNELS((class Stored), Noise<Stored>)

template <class Image, class Network>
struct Perturb {
  Network* y;      // [K, B, d]
  const Image* x;  // [B, d]
  NetworkInput<compute_t<Image>> input;
  int64_t draws, batch, d, seed;
  bool antithetic;
  const float* bank;  // the independent draws, [K, d] or [K/2, d], or null to generate them
};
PURSAMERE_KERNELS((class Image, class Network), Perturb<Image, Network>)

template <class Image, class Network>
struct Residual {
  using A = compute_t<Image>;

  // The results, each of which may be null.
  Network* cotangent;         // [K, B, d]
  Image* drift;               // [B, d]
  A* ere;                     // [B]
  const Image* x;             // [B, d]
  const Network* prediction;  // [K, B, d]
  ResidualMap<A> map;
  // The cotangent is slope * r_k, the drift drift_factor * sum_k r_k, the ERE ere_factor * sum_k ||r_k||^2.
  A slope, drift_factor, ere_factor;
  int64_t draws, batch, d, seed;
  bool antithetic;
  A* scratch;
};
PURSAMERE_KERNELS((class Image, class Network), Residual<Image, Network>)

template <class Image, class Network>
struct ResidualBackward {
  Network* out;             // [K, B, d]
  Image* sum;               // [B, d]
  const Network* per_draw;  // [K, B, d]
  const Image* shared;      // [B, d]
  Mix<compute_t<Image>> mix;
  int64_t draws, batch, d;
};
PURSAMERE_KERNELS((class Image, class Network), ResidualBackward<Image, Network>)

// g = direct + sum_k per_draw_k, added in this order.
template <class Image, class Network>
struct DrawSum {
  const Network* per_draw;  // [K, B, d]
  const Image* direct;      // [B, d], or null
  int64_t draws, batch, d;
};

// y_k = scale (x + sigma xi_k) + shift for the op's result x. The noise is read from a bank of its independent draws: K, or
// K/2 if antithetic.
template <class Image, class Network>
struct Perturbed {
  Network* y = nullptr;         // [K, B, d], or null if no noise is to be added
  const float* bank = nullptr;  // [independent, d]
  int64_t independent = 0;
  bool antithetic = false;
  NetworkInput<compute_t<Image>> input = {};

  int64_t draws() const { return independent * (antithetic ? 2 : 1); }
};

template <class Image, class Network>
struct SumDraws {
  Image* out;  // [B, d]
  DrawSum<Image, Network> gradient;
};
PURSAMERE_KERNELS((class Image, class Network), SumDraws<Image, Network>)

template <class Image, class Network>
struct AccumulateAscend {
  using A = compute_t<Image>;

  Image* point;    // [B, d]
  A* norm;         // [B]
  const Image* x;  // [B, d]
  DrawSum<Image, Network> gradient;
  A radius;
  A* scratch;
  Perturbed<Image, Network> perturbed;  // the point
};
PURSAMERE_KERNELS((class Image, class Network), AccumulateAscend<Image, Network>)

template <class Image, class Network>
struct AccumulateDescend {
  using A = compute_t<Image>;

  Image* next;         // [B, d]
  const Image* x;      // [B, d]
  const Image* input;  // [B, d]
  DrawSum<Image, Network> gradient;
  Step step;
  Ball ball;
  A step_size, radius;
  A* scratch;
  Perturbed<Image, Network> perturbed;  // the next point
};
PURSAMERE_KERNELS((class Image, class Network), AccumulateDescend<Image, Network>)

// Instantiates DEFINE(Image, Network) for every supported pair of types: equal types, or float images with a half-type
// network.
#define PURSAMERE_FOR_EACH_TYPE(DEFINE) DEFINE(float) DEFINE(double) DEFINE(Half) DEFINE(BFloat16)
#define PURSAMERE_FOR_EACH_PAIR(DEFINE) \
  DEFINE(float, float)                  \
  DEFINE(double, double)                \
  DEFINE(Half, Half)                    \
  DEFINE(BFloat16, BFloat16)            \
  DEFINE(float, Half)                   \
  DEFINE(float, BFloat16)

// Whether an Image can hold intermediate results without loss.
template <class Stored>
inline constexpr bool kStoredAsComputed = sizeof(Stored) == sizeof(compute_t<Stored>);

}  // namespace pursamere
