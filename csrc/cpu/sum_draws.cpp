// sum_draws: the sum over the draws, in their order.
#include "cpu/backend.h"
#include "cpu/draw_sum.h"
#include "cpu/sample_sum.h"

namespace pursamere::cpu {

template <class Image, class Network>
void run(const SumDraws<Image, Network>& p) {
  const DrawSum<Image, Network>& sum = p.gradient;
  for_each_sample(sum.batch, sum.d, sum.draws, [&](int64_t b) {
    for_each_tile(sum.d, sum.draws, [&](int64_t first, int64_t count) {
      OutputRow<Image> row;
      Image* out = p.out + b * sum.d + first;
      sum_draws(row.at(out), sum, b, first, count);
      row.finish(out, count);
    });
  });
}

#define PURSAMERE_SUM_DRAWS(Image, Network) template void run(const SumDraws<Image, Network>&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_SUM_DRAWS)

}  // namespace pursamere::cpu
