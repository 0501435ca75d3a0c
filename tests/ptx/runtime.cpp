// Stands in for the CUDA runtime library under the host code that nvcc makes: launches run the kernels that were translated
// from PTX (ptx_translator.py), with the stand-in of tests/cuda_on_cpu/shim/ for the device.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "machine.h"

namespace {

unsigned component(uint3 v, int axis) { return axis == 0 ? v.x : axis == 1 ? v.y : v.z; }
unsigned component(dim3 v, int axis) { return axis == 0 ? v.x : axis == 1 ? v.y : v.z; }

// In a function, since it is filled before global variables of this file need be there.
std::map<const void*, TranslatedKernel*>& kernels_by_host_function() {
  static std::map<const void*, TranslatedKernel*> kernels;
  return kernels;
}

cudaError_t run(TranslatedKernel& kernel, dim3 grid, dim3 block, void** parameters) {
  if (block.x * block.y * block.z > unsigned(kernel.max_threads)) return cudaErrorInvalidValue;
  ++kernel.runs;
  return cuda_on_cpu::launch(kernel.function, grid, block, reinterpret_cast<const unsigned char* const*>(parameters));
}

// Host code finds these here: inline in the stand-in, they are emitted only where they are used.
[[gnu::used]] void* const runtime_functions[] = {
    reinterpret_cast<void*>(&cudaGetErrorName),
    reinterpret_cast<void*>(&cudaGetErrorString),
    reinterpret_cast<void*>(&cudaDriverGetVersion),
};

}  // namespace

u32 ptx_tid(int axis) { return component(threadIdx, axis); }
u32 ptx_ntid(int axis) { return component(blockDim, axis); }
u32 ptx_ctaid(int axis) { return component(blockIdx, axis); }
u32 ptx_nctaid(int axis) { return component(gridDim, axis); }

unsigned char* ptx_shared_memory(u64 size) {
  alignas(16) static unsigned char memory[227 << 10];
  static int64_t launch = -1;
  static uint3 block;
  if (size > sizeof memory) throw std::runtime_error("ptx: more shared memory than there is");
  const bool same_block = block.x == blockIdx.x && block.y == blockIdx.y && block.z == blockIdx.z;
  if (launch != cuda_on_cpu::launch_count || !same_block) memset(memory, 0xff, size);
  launch = cuda_on_cpu::launch_count;
  block = blockIdx;
  return memory;
}

void ptx_barrier() { __syncthreads(); }
void ptx_warp_barrier(u32 mask) { __syncwarp(mask); }

u32 ptx_shuffle(u32 value, u32 lane_mask, u32 clamp, u32 mask) {
  if (clamp != 31) throw std::runtime_error("ptx: a shuffle within a part of a warp");
  return __shfl_xor_sync(mask, value, int(lane_mask));
}

extern "C" {

// What nvcc's host code calls.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  for (int i = 0; i < translated_count; ++i) {
    if (std::string(name) == translated[i].name) {
      kernels_by_host_function()[host] = &translated[i];
      return;
    }
  }
  std::fprintf(stderr, "ptx: no translation of %s\n", name);
  std::abort();
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** parameters, size_t shared, cudaStream_t) {
  const auto found = kernels_by_host_function().find(host);
  if (found == kernels_by_host_function().end() || shared != 0) return cudaErrorInvalidValue;
  return run(*found->second, grid, block, parameters);
}
// For kernel<<<...>>>, which the library does not use.
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { std::abort(); }
int __cudaPopCallConfiguration(void*, void*, void*, void*) { std::abort(); }
int __cudaGetKernel(void**, const void*) { std::abort(); }
int __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { std::abort(); }

// For the tests.
__attribute__((visibility("default"))) int kernel_count() { return translated_count; }
__attribute__((visibility("default"))) const char* kernel_name(int kernel) { return translated[kernel].name; }
__attribute__((visibility("default"))) int64_t kernel_runs(int kernel) { return translated[kernel].runs; }
// Returns what went wrong, or null.
__attribute__((visibility("default"))) const char* run_kernel(int kernel, unsigned grid, unsigned block, void** parameters) {
  static std::string message;
  try {
    const cudaError_t error = run(translated[kernel], grid, block, parameters);
    return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
}
