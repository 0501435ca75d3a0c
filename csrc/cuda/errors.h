// Messages for CUDA runtime errors.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace pursamere::cuda {

// The error, with advice if there is any.
inline std::string describe(cudaError_t error) {
  std::string text = std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    text += "; this build has kernels for the architectures " PURSAMERE_CUDA_ARCHITECTURES;
  } else if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);  // stays 0 without a driver
    text += "; this build contains the runtime of CUDA " + std::to_string(CUDART_VERSION / 1000) +
            ", the driver is of CUDA " + std::to_string(driver / 1000) +
            ": update the driver, or build with the nvcc of a CUDA that it supports";
  }
  return text;
}

}  // namespace pursamere::cuda
