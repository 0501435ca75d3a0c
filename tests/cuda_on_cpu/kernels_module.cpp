// torch.ops.pursamere_cuda_on_cpu: the ops of torch.ops.pursamere, on CPU tensors, by the CUDA kernels under the stand-in
// for CUDA in shim/.
#include "cuda/kernels.h"
#include "ops.h"

namespace {

struct Backend : pursamere::cuda::Kernels {
  explicit Backend(const torch::stable::Tensor&) : Kernels({nullptr, cuda_on_cpu::multiprocessor_count}) {}
};

}  // namespace

STABLE_TORCH_LIBRARY(pursamere_cuda_on_cpu, m) { pursamere::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pursamere_cuda_on_cpu, CPU, m) { pursamere::register_ops<Backend>(m); }

extern "C" {

__attribute__((visibility("default"))) void set_machine(bool reverse_order, int multiprocessors) {
  cuda_on_cpu::reverse_order = reverse_order;
  cuda_on_cpu::multiprocessor_count = multiprocessors;
}

__attribute__((visibility("default"))) int64_t launch_count() { return cuda_on_cpu::launch_count; }

__attribute__((visibility("default"))) void set_launch_error(int error) {
  cuda_on_cpu::launch_error = cudaError_t(error);
}
}
