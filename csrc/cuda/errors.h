// The runtime's errors, in words.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace pursamere::cuda {

// What went wrong, and what to do where that is known.
inline std::string describe(cudaError_t error) {
  std::string text = std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    text += "; this build has kernels for the architectures " PURSAMERE_CUDA_ARCHITECTURES;
  } else if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);  // leaves 0 where there is no driver
    text += "; this build contains the runtime of CUDA " + std::to_string(CUDART_VERSION / 1000) +
            ", the driver is of CUDA " + std::to_string(driver / 1000) +
            ": update the driver, or build with the nvcc of a CUDA that it supports";
  }
  return text;
}

}  // namespace pursamere::cuda
