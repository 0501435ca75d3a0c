#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pursamere::cuda {

// Where to launch: the caller's device is current.
struct Device {
  cudaStream_t stream;
  int multiprocessors;
};

// For messages.
struct Shape {
  const char* op;
  int64_t draws, batch, d;
};

}  // namespace pursamere::cuda
