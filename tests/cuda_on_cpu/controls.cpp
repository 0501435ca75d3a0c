// What the tests set and read of the stand-in for CUDA.
#include <cuda_runtime.h>

extern "C" {

int multiprocessor_count() { return cuda_on_cpu::multiprocessor_count; }  // for kernels_module.cpp

__attribute__((visibility("default"))) void set_machine(bool reverse_order, int multiprocessors) {
  cuda_on_cpu::reverse_order = reverse_order;
  cuda_on_cpu::multiprocessor_count = multiprocessors;
}

__attribute__((visibility("default"))) int64_t launch_count() { return cuda_on_cpu::launch_count; }

__attribute__((visibility("default"))) void set_launch_error(int error) {
  cuda_on_cpu::launch_error = cudaError_t(error);
}
}
