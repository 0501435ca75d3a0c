// The CUDA kernels, one file for each op. Free of torch: compiled by nvcc, or for a host without a GPU by g++ (see
// tests/cuda_on_cpu/). Nothing here synchronizes or allocates.
#pragma once

#include "cuda/device.h"
#include "cuda/plan.h"
#include "problems.h"

namespace pursamere::cuda {

template <class Stored>
void run(const Noise<Stored>& problem, const Device& device);
template <class Image, class Network>
void run(const Perturb<Image, Network>& problem, const Device& device);
template <class Image, class Network>
void run(const Residual<Image, Network>& problem, const Device& device);
template <class Image, class Network>
void run(const AccumulateAscend<Image, Network>& problem, const Device& device);
template <class Image, class Network>
void run(const AccumulateDescend<Image, Network>& problem, const Device& device);

// The part of the backend (csrc/ops.h) that does not depend on torch.
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
