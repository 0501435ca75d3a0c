#include "cuda/backend.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

#include "cuda/errors.h"

// Exported only by torch with CUDA; the module must also load without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace pursamere {
namespace {

cuda::Device device_of(const torch::stable::Tensor& tensor) {
  if (!aoti_torch_get_current_cuda_stream) throw std::runtime_error("pursamere: this torch has no CUDA");
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("pursamere: the current CUDA stream is not known");
  int multiprocessors = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, tensor.get_device_index());
  if (error != cudaSuccess) {
    throw std::runtime_error("pursamere: the CUDA device cannot be asked for its size: " + cuda::describe(error));
  }
  return {static_cast<cudaStream_t>(stream), multiprocessors};
}

}  // namespace

CudaBackend::CudaBackend(const torch::stable::Tensor& tensor)
    : Kernels(device_of(tensor)), guard_(tensor.get_device_index()) {}

}  // namespace pursamere
