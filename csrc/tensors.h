// Inputs and outputs of the ops, bypassing the dispatcher, which the usual helpers of the stable ABI
// (torch::stable::contiguous, new_empty) go through and which costs more than a small op.
#pragma once

#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"

namespace pursamere {

// The error message of the last failed call, available from torch 2.13; earlier versions only print it.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

template <class... What>
void check_status(AOTITorchError status, const What&... what) {
  if (status == AOTI_TORCH_SUCCESS) return;
  const char* why = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
  STD_TORCH_CHECK(false, "pursamere could not ", what..., ": ", why ? why : "see standard error");
}

// For messages: [2, 3, 4]
inline std::string to_string(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) {
    const int64_t size = shape[i] > 1 ? shape[i] : 1;
    STD_TORCH_CHECK(!__builtin_mul_overflow(strides[i], size, &strides[i - 1]), "a tensor of shape ", to_string(shape),
                    " is too large");
  }
  return strides;
}

// Bytes per value in the compute precision of a stored type.
inline int64_t compute_size(ScalarType dtype) { return dtype == ScalarType::Double ? 8 : 4; }

inline int64_t stored_size(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : (dtype == ScalarType::Float ? 4 : 2);
}

// An uninitialized contiguous tensor on the device of `like`. Sizes whose product overflows are rejected here or by torch,
// so the ops need no overflow checks, except for tensors without elements, which may have any sizes.
inline Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  const std::vector<int64_t> strides = contiguous_strides(shape);
  int32_t device_type, device_index;
  check_status(aoti_torch_get_device_type(like.get(), &device_type), "tell a tensor's device");
  check_status(aoti_torch_get_device_index(like.get(), &device_index), "tell a tensor's device");
  const int32_t code = dtype == ScalarType::Float      ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Double   ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                       : -1;
  STD_TORCH_CHECK(code >= 0, "only float16, bfloat16, float32 and float64 results can be allocated");
  AtenTensorHandle handle;
  check_status(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), code, device_type,
                                        device_index, &handle),
               "allocate a tensor of shape ", to_string(shape), " with ", stored_size(dtype), " bytes per value");
  return Tensor(handle);
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

inline Tensor allocate_like(const Tensor& tensor) {
  return allocate(tensor, shape_of(tensor), tensor.scalar_type());
}

// Not torch::stable::contiguous, whose error for a tensor too large to copy is unclear.
inline Tensor contiguous_input(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  Tensor copy = allocate_like(tensor);
  return torch::stable::copy_(copy, tensor);
}

// A bank that perturbs x: not read if x has no elements, where its own may be too many to copy.
inline Tensor bank_input(const Tensor& bank, const Tensor& x) { return x.numel() > 0 ? contiguous_input(bank) : bank; }

struct WithScratch {
  Tensor tensor;
  void* scratch;  // null if not requested
};

// A result of `count` elements, followed by `values` scratch values of compute precision in the same allocation, so that an
// op allocates only its results.
inline WithScratch allocate_with_scratch(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype,
                                         int64_t count, int64_t values) {
  if (values == 0) return {allocate(like, shape, dtype), nullptr};
  const int64_t alignment = 16 / stored_size(dtype);
  const int64_t begin = (count + alignment - 1) / alignment * alignment;
  const int64_t length = begin + (values * compute_size(dtype) + stored_size(dtype) - 1) / stored_size(dtype);
  const Tensor whole = allocate(like, {length}, dtype);
  AtenTensorHandle handle;
  const std::vector<int64_t> strides = contiguous_strides(shape);
  check_status(aoti_torch__reinterpret_tensor(whole.get(), int64_t(shape.size()), shape.data(), strides.data(), 0,
                                              &handle),
               "make a view of a result");
  return {Tensor(handle), static_cast<char*>(whole.mutable_data_ptr()) + begin * stored_size(dtype)};
}

inline WithScratch allocate_with_scratch(const Tensor& like, int64_t values) {
  return allocate_with_scratch(like, shape_of(like), like.scalar_type(), like.numel(), values);
}

// A result that is not wanted, [0].
inline Tensor allocate_nothing(const Tensor& like) { return allocate(like, {0}, like.scalar_type()); }

// [K, *shape of tensor]
inline Tensor allocate_draws(const Tensor& tensor, int64_t draws, ScalarType dtype) {
  std::vector<int64_t> shape = shape_of(tensor);
  shape.insert(shape.begin(), draws);
  return allocate(tensor, shape, dtype);
}

// [B], in compute precision.
inline WithScratch allocate_per_sample(const Tensor& x, int64_t scratch_values) {
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return allocate_with_scratch(x, {x.size(0)}, dtype, x.size(0), scratch_values);
}

inline Tensor allocate_per_sample(const Tensor& x) { return allocate_per_sample(x, 0).tensor; }

// Elements per sample of x [B, *]; 0 if B = 0, where the product of the other sizes may overflow.
inline int64_t sample_size(const Tensor& x) { return x.size(0) > 0 ? x.numel() / x.size(0) : 0; }

}  // namespace pursamere
