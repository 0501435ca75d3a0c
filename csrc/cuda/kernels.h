// The CUDA kernels. Free of torch: compiled by nvcc or, for a host without a GPU, by g++ (see tests/cuda_on_cpu/). Nothing
// here waits for the device or allocates.
#pragma once

#include "cuda/device.h"
#include "cuda/plan.h"
#include "problems.h"

namespace pursamere::cuda {

// The part of a backend (csrc/ops.h) that does not depend on torch.
class Kernels {
 public:
  explicit Kernels(const Device& device) : device_(device) {}

  int64_t scratch_values(int64_t batch, int64_t d, int sums) const {
    return cuda::scratch_values(plan_samples(batch, d, device_.multiprocessors), sums);
  }

  template <class Problem>
  void run(const Problem& problem) const {
    cuda::run(problem, device_);
  }

 private:
  Device device_;
};

}  // namespace pursamere::cuda
