#include "cuda/backend.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

// Exported by a torch with CUDA only; the same module also has to load where there is none.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace pursamere {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("pursamere: ") + what + ": " + cudaGetErrorName(error) + ", " +
                             cudaGetErrorString(error));
  }
}

}  // namespace

CudaBackend::CudaBackend(const torch::stable::Tensor& tensor) : current_(tensor.get_device_index()) {
  if (!aoti_torch_get_current_cuda_stream) throw std::runtime_error("pursamere: this torch has no CUDA");
  check(cudaGetDevice(&previous_), "the current CUDA device is not known");
  if (current_ != previous_) check(cudaSetDevice(current_), "the tensor's CUDA device cannot be made current");
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(current_, &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("pursamere: the current CUDA stream is not known");
  device_.stream = static_cast<cudaStream_t>(stream);
  check(cudaDeviceGetAttribute(&device_.multiprocessors, cudaDevAttrMultiProcessorCount, current_),
        "the number of multiprocessors is not known");
}

CudaBackend::~CudaBackend() {
  if (current_ != previous_) cudaSetDevice(previous_);
}

}  // namespace pursamere
