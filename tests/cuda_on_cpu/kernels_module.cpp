// torch.ops.pursamere_cuda_on_cpu: the ops of torch.ops.pursamere, on CPU tensors, by the CUDA kernels under a stand-in for
// CUDA: that of shim/ or, where nvcc has compiled the kernels, that of ../ptx/. So it may use only what CUDA's headers have.
#include "cuda/kernels.h"
#include "ops.h"

extern "C" int multiprocessor_count();

namespace {

struct Backend : pursamere::cuda::Kernels {
  explicit Backend(const torch::stable::Tensor&) : Kernels({nullptr, multiprocessor_count()}) {}
};

}  // namespace

STABLE_TORCH_LIBRARY(pursamere_cuda_on_cpu, m) { pursamere::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(pursamere_cuda_on_cpu, CPU, m) { pursamere::register_ops<Backend>(m); }
