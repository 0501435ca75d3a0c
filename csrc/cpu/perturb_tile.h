// y_k = scale (x + sigma xi_k) + shift, by rows.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/rows.h"

namespace pursamere {

void perturb_row(float* y, const float* x, const float* xi, NetworkInput<float> input, float sign, int64_t count);
void perturb_row(double* y, const double* x, const double* xi, NetworkInput<double> input, double sign, int64_t count);

// A row of a bank in compute precision, in place or in the buffer.
inline const float* bank_row(const float* row, float*, int64_t) { return row; }
inline const double* bank_row(const float* row, double* buffer, int64_t count) {
  std::copy_n(row, count, buffer);
  return buffer;
}

// Elements [first, first + count) of sample b, for which an op has stored the result x.
template <class Image, class Network>
void perturb_tile(const Perturbed<Image, Network>& p, const Image* x, const DrawSum<Image, Network>& shape, int64_t b,
                  int64_t first, int64_t count) {
  if (!p.y) return;
  using A = compute_t<Image>;
  A buffer[std::is_same_v<A, float> ? 1 : kTile];
  InputRow<Image> stored;
  OutputRow<Network> output;
  const A* image = stored(x, count);
  const int64_t copies = p.antithetic ? 2 : 1;
  for (int64_t draw = 0; draw < p.independent; ++draw) {
    const A* xi = bank_row(p.bank + draw * shape.d + first, buffer, count);
    for (int64_t copy = 0; copy < copies; ++copy) {
      Network* y = p.y + ((draw * copies + copy) * shape.batch + b) * shape.d + first;
      perturb_row(output.at(y), image, xi, p.input, A(copy ? -1 : 1), count);
      output.finish(y, count);
    }
  }
}

}  // namespace pursamere
