// Inputs and outputs of the ops, by the shortest way through the stable ABI: the usual helpers (torch::stable::contiguous,
// new_empty) go through the dispatcher, which costs more than a small op itself.
#pragma once

#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"

namespace pursamere {

inline Tensor contiguous_input(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// An uninitialised contiguous tensor on the device of `like`.
inline Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  const int64_t dims = int64_t(shape.size());
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[size_t(i)] = stride;
    stride *= shape[size_t(i)] > 1 ? shape[size_t(i)] : 1;
  }
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t code = dtype == ScalarType::Float      ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Double   ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                       : -1;
  STD_TORCH_CHECK(code >= 0, "only float16, bfloat16, float32 and float64 results can be allocated");
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, shape.data(), strides.data(), code, device_type, device_index, &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

inline Tensor allocate_like(const Tensor& tensor) {
  return allocate(tensor, shape_of(tensor), tensor.scalar_type());
}

// [K, *shape of tensor]
inline Tensor allocate_draws(const Tensor& tensor, int64_t draws, ScalarType dtype) {
  std::vector<int64_t> shape = shape_of(tensor);
  shape.insert(shape.begin(), draws);
  return allocate(tensor, shape, dtype);
}

// [B], in the precision that sums are computed in.
inline Tensor allocate_per_sample(const Tensor& x) {
  return allocate(x, {x.size(0)}, x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// The number of elements of a sample of x [B, *].
inline int64_t sample_size(const Tensor& x) {
  int64_t d = 1;
  for (int64_t i = 1; i < x.dim(); ++i) d *= x.size(i);
  return d;
}

}  // namespace pursamere
