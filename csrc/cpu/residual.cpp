// residual: from the network's output to the ERE, its cotangent for the network, and the mean residual.
#include "cpu/backend.h"
#include "cpu/noise_tile.h"
#include "cpu/sample_groups.h"
#include "cpu/sample_sum.h"

namespace pursamere {
namespace {

constexpr int kDrawsAtOnce = 4;

// Some draws of one tile of one sample. Every row has the tile's length; xi is the noise of an independent draw, and the
// cotangents are null if not wanted.
template <class A>
struct DrawRows {
  A* cotangent[kDrawsAtOnce];
  const A* prediction[kDrawsAtOnce];
  const A* xi[kDrawsAtOnce];
  A xi_sign[kDrawsAtOnce];
};

// Adds the residuals of N draws, in their order, to `sum` and, if wanted, their squares to `square_sum`, and writes the
// cotangents, if wanted.
template <bool kNoise, bool kCotangent, bool kSquares, int N, class A>
PURSAMERE_HD void residual_rows(const DrawRows<A>& rows, A* sum, A* square_sum, const A* x, ResidualMap<A> map, A slope,
                                int64_t count) {
#ifndef __clang__  // which does not know it, and tests for overlap at run time
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < count; ++i) {
    const A image = map.image(x[i]);
    A total = sum[i], square_total = kSquares ? square_sum[i] : A(0);
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
      const A xi = kNoise ? rows.xi_sign[k] * rows.xi[k][i] : A(0);
      const A r = map.template residual<kNoise>(image, rows.prediction[k][i], xi);
      if (kCotangent) rows.cotangent[k][i] = slope * r;
      total += r;
      if (kSquares) square_total = fused_multiply_add(r, r, square_total);
    }
    sum[i] = total;
    if (kSquares) square_sum[i] = square_total;
  }
}

template <bool kNoise, bool kCotangent, bool kSquares, class A>
PURSAMERE_HD void residual_rows(int draws, const DrawRows<A>& rows, A* sum, A* square_sum, const A* x,
                                ResidualMap<A> map, A slope, int64_t count) {
  const auto run = [&](auto n) {
    residual_rows<kNoise, kCotangent, kSquares, decltype(n)::value>(rows, sum, square_sum, x, map, slope, count);
  };
  switch (draws) {
    case 4: return run(std::integral_constant<int, 4>{});
    case 3: return run(std::integral_constant<int, 3>{});
    case 2: return run(std::integral_constant<int, 2>{});
    default: return run(std::integral_constant<int, 1>{});
  }
}

template <bool kNoise, class A>
PURSAMERE_HD void residual_rows(int draws, const DrawRows<A>& rows, A* sum, A* square_sum, const A* x,
                                ResidualMap<A> map, A slope, int64_t count) {
  if (rows.cotangent[0]) {
    if (square_sum) return residual_rows<kNoise, true, true>(draws, rows, sum, square_sum, x, map, slope, count);
    return residual_rows<kNoise, true, false>(draws, rows, sum, square_sum, x, map, slope, count);
  }
  if (square_sum) return residual_rows<kNoise, false, true>(draws, rows, sum, square_sum, x, map, slope, count);
  return residual_rows<kNoise, false, false>(draws, rows, sum, square_sum, x, map, slope, count);
}

}  // namespace

PURSAMERE_VECTORIZED void residual_draws(int draws, const DrawRows<float>& rows, float* sum, float* square_sum,
                                         const float* x, ResidualMap<float> map, float slope, int64_t count) {
  if (map.has_noise) return residual_rows<true>(draws, rows, sum, square_sum, x, map, slope, count);
  return residual_rows<false>(draws, rows, sum, square_sum, x, map, slope, count);
}

PURSAMERE_VECTORIZED void residual_draws(int draws, const DrawRows<double>& rows, double* sum, double* square_sum,
                                         const double* x, ResidualMap<double> map, double slope, int64_t count) {
  if (map.has_noise) return residual_rows<true>(draws, rows, sum, square_sum, x, map, slope, count);
  return residual_rows<false>(draws, rows, sum, square_sum, x, map, slope, count);
}

namespace {

// The noise of one tile for every independent draw; empty if it is not needed.
template <class Image, class Network>
std::vector<compute_t<Image>> tile_noise(const Residual<Image, Network>& p, int64_t first, int64_t count) {
  if (!p.map.has_noise) return {};
  const int64_t stride = 4 * ((count + 3) / 4);
  std::vector<compute_t<Image>> bank(size_t((independent_draw(p.draws - 1, p.antithetic) + 1) * stride));
  for (int64_t row = 0; row < int64_t(bank.size()) / stride; ++row)
    noise_tile(bank.data() + row * stride, noise_key(p.seed), uint32_t(row), first, count);
  return bank;
}

}  // namespace

namespace cpu {

template <class Image, class Network>
void run(const Residual<Image, Network>& p) {
  using A = compute_t<Image>;
  const int64_t chunks = chunk_count(p.d);
  std::vector<A> partial(p.ere ? size_t(p.batch * chunks) : 0);  // sums of squares of every chunk
  const SampleGroups units(p.batch, p.d, 1, p.map.has_noise ? 16 : 1);
  units.for_each(p.draws, [&](int64_t, int64_t first, int64_t count, int64_t b_first, int64_t b_last) {
    const std::vector<A> bank = tile_noise(p, first, count);
    const int64_t stride = 4 * ((count + 3) / 4);
    A square_sum[kTile], unwanted[kTile];
    InputRow<Image> image_row;
    OutputRow<Image> drift_row;
    InputRow<Network> prediction_row[kDrawsAtOnce];
    OutputRow<Network> cotangent_row[kDrawsAtOnce];
    for (int64_t b = b_first; b < b_last; ++b) {
      const int64_t offset = b * p.d + first;
      const A* image = image_row(p.x + offset, count);
      A* sum = p.drift ? drift_row.at(p.drift + offset) : unwanted;
      std::fill(sum, sum + count, A(0));
      if (p.ere) std::fill(square_sum, square_sum + count, A(0));
      for (int64_t k = 0; k < p.draws; k += kDrawsAtOnce) {
        const int at_once = int(std::min<int64_t>(kDrawsAtOnce, p.draws - k));
        const auto position = [&](int j) { return (k + j) * p.batch * p.d + offset; };
        DrawRows<A> rows{};
        for (int j = 0; j < at_once; ++j) {
          if (p.cotangent) rows.cotangent[j] = cotangent_row[j].at(p.cotangent + position(j));
          rows.prediction[j] = prediction_row[j](p.prediction + position(j), count);
          if (!bank.empty()) rows.xi[j] = bank.data() + independent_draw(k + j, p.antithetic) * stride;
          rows.xi_sign[j] = A(draw_sign(k + j, p.antithetic));
        }
        residual_draws(at_once, rows, sum, p.ere ? square_sum : nullptr, image, p.map, p.slope, count);
        for (int j = 0; p.cotangent && j < at_once; ++j) cotangent_row[j].finish(p.cotangent + position(j), count);
      }
      if (p.drift) {
        for (int64_t i = 0; i < count; ++i) sum[i] *= p.drift_factor;
        drift_row.finish(p.drift + offset, count);
      }
      if (p.ere) sum_chunks(partial.data() + b * chunks + first / kChunk, square_sum, count);
    }
  });
  for (int64_t b = 0; p.ere && b < p.batch; ++b) {
    p.ere[b] = sum_in_order<A>({partial.begin() + b * chunks, partial.begin() + (b + 1) * chunks}) * p.ere_factor;
  }
}

#define PURSAMERE_RESIDUAL(Image, Network) template void run(const Residual<Image, Network>&);
PURSAMERE_FOR_EACH_PAIR(PURSAMERE_RESIDUAL)

}  // namespace cpu
}  // namespace pursamere
