// The CPU's kernels, as csrc/ops.h wants them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "problems.h"

namespace pursamere {
namespace cpu {

template <class Stored>
void run(const Noise<Stored>& problem);
template <class Image, class Network>
void run(const Perturb<Image, Network>& problem);
template <class Image, class Network>
void run(const Residual<Image, Network>& problem);
template <class Image, class Network>
void run(const AccumulateAscend<Image, Network>& problem);
template <class Image, class Network>
void run(const AccumulateDescend<Image, Network>& problem);

}  // namespace cpu

struct CpuBackend {
  explicit CpuBackend(const torch::stable::Tensor&) {}

  static int64_t scratch_values(int64_t, int64_t, int) { return 0; }  // sums are kept on the host's stack and heap

  template <class Problem>
  void run(const Problem& problem) const {
    cpu::run(problem);
  }
};

}  // namespace pursamere
