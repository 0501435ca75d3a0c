// Dispatch from run-time dtypes to storage types: calls f with a null pointer to the storage type. f runs in IEEE mode,
// since ops compute in it.
#pragma once

#include "checks.h"
#include "ieee_mode.h"
#include "storage.h"

namespace pursamere {

template <class F>
void dispatch_dtype(ScalarType dtype, const char* op, F&& f) {
  in_ieee_mode([&] {
    switch (dtype) {
      case ScalarType::Float: return f(static_cast<float*>(nullptr));
      case ScalarType::Double: return f(static_cast<double*>(nullptr));
      case ScalarType::Half: return f(static_cast<Half*>(nullptr));
      case ScalarType::BFloat16: return f(static_cast<BFloat16*>(nullptr));
      default: STD_TORCH_CHECK(false, op, " takes float16, bfloat16, float32 and float64 tensors only");
    }
  });
}

// Dtypes of the images and of the network's tensors: equal, or a half type with float32 images.
template <class F>
void dispatch_pair(ScalarType image, ScalarType network, const char* op, F&& f) {
  dispatch_dtype(image, op, [&](auto* i) {
    dispatch_dtype(network, op, [&](auto* n) {
      using Image = std::remove_pointer_t<decltype(i)>;
      using Network = std::remove_pointer_t<decltype(n)>;
      if constexpr (std::is_same_v<Image, Network> ||
                    (std::is_same_v<Image, float> && std::is_same_v<compute_t<Network>, float>)) {
        f(i, n);
      } else {
        STD_TORCH_CHECK(false, op, " does not take this pair of dtypes");
      }
    });
  });
}

template <class Stored>
const Stored* input_pointer(const Tensor& tensor) {
  return static_cast<const Stored*>(tensor.const_data_ptr());
}

template <class Stored>
Stored* output_pointer(const Tensor& tensor) {
  return static_cast<Stored*>(tensor.mutable_data_ptr());
}

}  // namespace pursamere
