// The CUDA backend for csrc/ops.h: launches on a tensor's device and its current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/kernels.h"

namespace pursamere {

class CudaBackend : public cuda::Kernels {
 public:
  explicit CudaBackend(const torch::stable::Tensor& tensor);

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace pursamere
