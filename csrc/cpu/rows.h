// Rows of at most kTile elements in compute precision: used in place if stored in it, else converted through a small
// buffer.
#pragma once

#include "cpu/vectorize.h"
#include "reduction.h"
#include "problems.h"

namespace pursamere {

// Tile size of the CPU ops: small enough for the L1 cache, large enough for long sequential reads.
constexpr int64_t kTile = 4 * kChunk;
inline int64_t tile_count(int64_t d) { return (d + kTile - 1) / kTile; }

void convert_row(const Half* from, float* to, int64_t count);
void convert_row(const BFloat16* from, float* to, int64_t count);
void convert_row(const float* from, Half* to, int64_t count);
void convert_row(const float* from, BFloat16* to, int64_t count);

template <class Stored>
class InputRow {
 public:
  using A = compute_t<Stored>;

  const A* operator()(const Stored* row, int64_t count) {
    if constexpr (kStoredAsComputed<Stored>) {
      return row;
    } else {
      convert_row(row, buffer_, count);
      return buffer_;
    }
  }

 private:
  A buffer_[kStoredAsComputed<Stored> ? 1 : kTile];
};

template <class Stored>
class OutputRow {
 public:
  using A = compute_t<Stored>;

  // Where to compute the row; `finish` then stores it.
  A* at(Stored* row) {
    if constexpr (kStoredAsComputed<Stored>) {
      return row;
    } else {
      return buffer_;
    }
  }

  void finish(Stored* row, int64_t count) {
    if constexpr (!kStoredAsComputed<Stored>) convert_row(buffer_, row, count);
  }

 private:
  A buffer_[kStoredAsComputed<Stored> ? 1 : kTile];
};

}  // namespace pursamere
