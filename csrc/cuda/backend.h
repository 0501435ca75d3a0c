// The CUDA kernels on the device of a tensor and its current stream, as csrc/ops.h wants them.
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
