// perturb: y_k = scale (x + sigma xi_k) + shift, the noise generated on the way or read from a bank.
#include "cpu/backend.h"
#include "cpu/noise_tile.h"
#include "cpu/perturb_tile.h"
#include "cpu/sample_groups.h"

namespace pursamere {

PURSAMERE_VECTORIZED void perturb_row(float* __restrict y, const float* __restrict x, const float* __restrict xi,
                                      NetworkInput<float> input, float sign, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = input.noisy(input.image(x[i]), sign, xi[i]);
}

PURSAMERE_VECTORIZED void perturb_row(double* __restrict y, const double* __restrict x, const double* __restrict xi,
                                      NetworkInput<double> input, double sign, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = input.noisy(input.image(x[i]), sign, xi[i]);
}

namespace cpu {

template <class Image, class Network>
void run(const Perturb<Image, Network>& p) {
  using A = compute_t<Image>;
  const int64_t copies = p.antithetic ? 2 : 1;
  const SampleGroups units(p.batch, p.d, p.draws / copies, 16);
  units.for_each(copies, [&](int64_t draw, int64_t first, int64_t count, int64_t b_first, int64_t b_last) {
    A values[kTile];
    const A* xi = values;
    InputRow<Image> image_row;
    OutputRow<Network> output;
    if (p.bank) {
      xi = bank_row(p.bank + draw * p.d + first, values, count);
    } else {
      noise_tile(values, noise_key(p.seed), uint32_t(draw), first, count);
    }
    for (int64_t b = b_first; b < b_last; ++b) {
      const A* image = image_row(p.x + b * p.d + first, count);
      for (int64_t copy = 0; copy < copies; ++copy) {
        Network* target = p.y + ((draw * copies + copy) * p.batch + b) * p.d + first;
        perturb_row(output.at(target), image, xi, p.input, A(copy ? -1 : 1), count);
        output.finish(target, count);
      }
    }
  });
}

#define PURSAMERE_PERTURB(Image, Network) template void run(const Perturb<Image, Network>&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_PERTURB)

}  // namespace cpu
}  // namespace pursamere
