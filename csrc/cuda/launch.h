// Kernel launches, with errors that name the op and the device.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "cuda/errors.h"

namespace pursamere::cuda {

// Many blocks per multiprocessor, for load balance; kernels stride over the rest.
constexpr int64_t kBlocksPerMultiprocessor = 128;

inline unsigned blocks_for(int64_t units, const Device& device) {
  return unsigned(std::min(units, kBlocksPerMultiprocessor * device.multiprocessors));
}

// Threads of each of the blocks that share this much work evenly, in whole warps.
inline int threads_for(int64_t pieces, int most) {
  const int64_t blocks = std::max<int64_t>((pieces + most - 1) / most, 1);
  const int64_t each = (pieces + blocks - 1) / blocks;
  return int(std::clamp<int64_t>((each + 31) / 32 * 32, 32, most));
}

[[noreturn]] inline void fail_launch(cudaError_t error, const Shape& shape) {
  std::string message = "pursamere::" + std::string(shape.op) + " on " + std::to_string(shape.draws) + " draws of [" +
                        std::to_string(shape.batch) + ", " + std::to_string(shape.d) + "]: " + describe(error);
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInsufficientDriver)
    message += " (the kernel was not launched, or earlier work on the device had failed)";
  throw std::runtime_error(message);
}

// The status may also stem from earlier asynchronous work on the device.
template <class... Parameters, class... Arguments>
void launch(const Device& device, const Shape& shape, void (*kernel)(Parameters...), int64_t units, int threads,
            const Arguments&... arguments) {
  if (units == 0) return;
  const dim3 grid(blocks_for(units, device)), block(static_cast<unsigned>(threads));
#if defined(__CUDACC__)
  const auto pass = [&](Parameters... parameters) {
    void* pointers[] = {static_cast<void*>(&parameters)...};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, 0, device.stream);
  };
  const cudaError_t error = pass(arguments...);
#else
  const cudaError_t error = cuda_on_cpu::launch(kernel, grid, block, arguments...);
#endif
  if (error != cudaSuccess) fail_launch(error, shape);
}

}  // namespace pursamere::cuda
