#include "cpu/backend.h"
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(pursamere, CPU, m) { pursamere::register_ops<pursamere::CpuBackend>(m); }
