// Stands in for CUDA's header of this name, so that g++ compiles the kernels of csrc/cuda/ and a machine without a GPU
// runs them: under AddressSanitizer and UndefinedBehaviorSanitizer too, and with errors where a GPU would hang.
//
// Shared memory is static: every block finds in it what the block before left, not fresh garbage.
#pragma once

#include <cstring>
#include <type_traits>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }

using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
};

namespace cuda_on_cpu {

inline cudaError_t launch_error = cudaSuccess;  // what every launch fails with, if it is an error

namespace detail {

// CUDA's rules also let a part of a warp meet; no kernel here needs that, and a forgotten lane is worth an error.
inline void require_full(unsigned mask) {
  if (mask != ~0u) throw std::runtime_error("cuda_on_cpu: a warp operation with a mask that is not full");
}

inline bool valid(dim3 grid, dim3 block) {
  const bool some = grid.x && grid.y && grid.z && block.x && block.y && block.z;
  const bool few_threads = block.x <= 1024 && block.y <= 1024 && block.z <= 64 && block.x * block.y * block.z <= 1024;
  return some && few_threads && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

}  // namespace detail

// kernel<<<grid, block>>>(arguments...). Throws what a kernel thread throws and std::runtime_error at a deadlock.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) {
  static_assert(!(std::is_reference_v<Parameters> || ...), "a kernel takes its parameters by value");
  if (launch_error != cudaSuccess) return launch_error;
  if (!detail::valid(grid, block)) return cudaErrorInvalidConfiguration;
  detail::machine.run(grid, block, [&] { kernel(arguments...); });  // not forwarded: every thread needs them
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::detail::machine.wait(cuda_on_cpu::detail::State::at_syncthreads); }

inline void __syncwarp(unsigned mask = ~0u) {
  cuda_on_cpu::detail::require_full(mask);
  cuda_on_cpu::detail::machine.wait(cuda_on_cpu::detail::State::at_syncwarp);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA has no shuffle of this type");
  using namespace cuda_on_cpu::detail;
  require_full(mask);
  if (lane_mask < 0 || lane_mask >= warpSize) throw std::runtime_error("cuda_on_cpu: a shuffle with no such lane");
  Fibre& self = machine.current();
  memcpy(&self.sent, &value, sizeof(T));
  self.lane_mask = lane_mask;
  machine.wait(State::at_shuffle);
  memcpy(&value, &self.received, sizeof(T));
  return value;
}

extern "C" {  // as in CUDA

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess                     ? "cudaSuccess"
         : error == cudaErrorInvalidValue         ? "cudaErrorInvalidValue"
         : error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
         : error == cudaErrorInvalidDevice        ? "cudaErrorInvalidDevice"
         : error == cudaErrorInsufficientDriver   ? "cudaErrorInsufficientDriver"
         : error == cudaErrorNoKernelImageForDevice
             ? "cudaErrorNoKernelImageForDevice"
             : "unrecognized error code";
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidValue         ? "invalid argument"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
         : error == cudaErrorInvalidDevice        ? "invalid device ordinal"
         : error == cudaErrorInsufficientDriver   ? "CUDA driver version is insufficient for CUDA runtime version"
         : error == cudaErrorNoKernelImageForDevice
             ? "no kernel image is available for execution on the device"
             : "unrecognized error code";
}

#define CUDART_VERSION 13000

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 12040;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorInvalidValue;
  *value = cuda_on_cpu::multiprocessor_count;
  return cudaSuccess;
}

}  // extern "C"
