// The CUDA kernels, as csrc/ops.h wants them: on the device of a tensor and its current stream.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "cuda/kernels.h"
#include "cuda/plan.h"

namespace pursamere {

class CudaBackend {
 public:
  explicit CudaBackend(const torch::stable::Tensor& tensor);
  ~CudaBackend();
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  int64_t scratch_values(int64_t batch, int64_t d, int sums) const {
    return cuda::scratch_values(cuda::plan_samples(batch, d, device_.multiprocessors), sums);
  }

  template <class Problem>
  void run(const Problem& problem) const {
    cuda::run(problem, device_);
  }

 private:
  int previous_ = 0, current_ = 0;
  cuda::Device device_{};
};

}  // namespace pursamere
