#include "cuda/backend.h"
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(pursamere, CUDA, m) { pursamere::register_ops<pursamere::CudaBackend>(m); }
