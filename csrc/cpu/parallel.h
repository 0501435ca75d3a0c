// How the CPU ops divide work among threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "ieee_mode.h"

namespace pursamere {

// Runs body(begin, end) on ranges that partition [0, count), in parallel if count exceeds `grain`.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  in_callers_mode([&] {
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      in_ieee_mode([&] { body(begin, end); });
    });
  });
}

}  // namespace pursamere
