// Sums over the elements of samples, in the order of reduction.h, with blocks laid out by plan.h.
#pragma once

#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/vectors.h"

namespace pursamere::cuda {

template <class Network>
inline constexpr int kGroupThreads = int(kChunk) / kVector<Network>;

constexpr int kMaxSums = 2;  // over a sample in one op

// Groups in a block at most. With more, or as many in double precision, a thread's registers would not suffice.
template <class A>
inline constexpr int kMaxGroups = sizeof(A) == 8 ? 2 : 3;

// For __launch_bounds__, to keep a thread to this many registers: the most threads for which a multiprocessor's 65,536
// suffice. Just above a bound, a multiprocessor would hold a block fewer.
constexpr int threads_with(int registers) { return 65536 / (registers * 128) * 128; }

// One sum over every sample. In scratch memory, or with null pointers in a block's shared memory.
template <class A>
struct SampleSum {
  A* chunk_sums;   // [B, chunks]
  const A* top;    // [B, top_count], of the last level
  int64_t top_count;
};

// Where sum number `index` is; nowhere yet if there is no scratch memory because none is needed.
template <class A>
SampleSum<A> sample_sum(const SamplePlan& plan, A* scratch, int index) {
  if (!scratch) return {nullptr, nullptr, plan.chunks};
  A* level = scratch + scratch_values(plan, 1) * index;
  A* const chunk_sums = level;
  int64_t n = plan.chunks;
  for (; n > kChunk; n = chunk_count(n)) level += plan.batch * n;
  return {chunk_sums, level, n};
}

// Fills in the levels above the chunk sums: no launch at all up to 2^20 elements in a sample.
template <class A>
void sum_upper_levels(const Device& device, const Shape& shape, const SamplePlan& plan, const SampleSum<A>& sum);

template <class A>
struct SharedSums {
  A stage[kMaxGroups<A>][kChunk];
  A chunk_sums[kMaxSums][kAloneChunks];
};

// One chunk, added up by one warp: value_at(i) for i in [0, 1024). All lanes get the sum.
template <class A, class ValueAt>
__device__ __forceinline__ A warp_sum(ValueAt&& value_at) {
  const int lane = int(threadIdx.x) % 32;
  A column[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) column[i] = value_at(4 * lane + i);
#pragma unroll
  for (int row = 1; row < 8; ++row)
#pragma unroll
    for (int i = 0; i < 4; ++i) column[i] += value_at(128 * row + 4 * lane + i);
  A sum = (column[0] + column[1]) + (column[2] + column[3]);
#pragma unroll
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
  return sum;
}

// A block's threads at work on one unit, a part of a sample. kThreads: in a group.
template <class A, int kThreads>
class SampleBlock {
 public:
  static constexpr int kVectorSize = int(kChunk) / kThreads;

  __device__ SampleBlock(SharedSums<A>& shared, const SamplePlan& plan, int64_t unit)
      : shared_(shared), plan_(plan), sample_(unit / plan.parts), part_(unit % plan.parts) {}

  __device__ int64_t sample() const { return sample_; }
  __device__ bool first_thread() const { return threadIdx.x == 0 && part_ == 0; }

  // Calls body(first, count) with the elements of the sample that are this thread's: kVectorSize from `first` on, of
  // which `count` exist, if it is positive. All threads of the block make the same number of calls.
  template <class Body>
  __device__ __forceinline__ void for_each_vector(Body&& body) {
    const int group = int(threadIdx.x) / kThreads, t = int(threadIdx.x) % kThreads;
    const int64_t begin = part_ * plan_.per_part;
    const int64_t end = begin + plan_.per_part < plan_.chunks ? begin + plan_.per_part : plan_.chunks;
    for (int64_t chunk = begin; chunk < end; chunk += plan_.groups) {
      chunk_ = chunk + group;
      in_part_ = chunk_ < end;
      const int64_t first = chunk_ * kChunk + t * kVectorSize;
      body(first, in_part_ ? plan_.d - first : 0);
    }
  }

  // Within for_each_vector, for all threads: leaves the sum of the chunk where `sum` is kept.
  __device__ __forceinline__ void add(const SampleSum<A>& sum, int index, const A (&values)[kVectorSize]) {
    const int group = int(threadIdx.x) / kThreads, t = int(threadIdx.x) % kThreads;
    A* stage = shared_.stage[group];
#pragma unroll
    for (int i = 0; i < kVectorSize; ++i) stage[t * kVectorSize + i] = values[i];
    __syncthreads();
    if (t < 32) {
      const A total = warp_sum<A>([&](int i) { return stage[i]; });
      if (t == 0 && in_part_) {
        if (sum.chunk_sums) {
          sum.chunk_sums[sample_ * plan_.chunks + chunk_] = total;
        } else {
          shared_.chunk_sums[index][chunk_] = total;
        }
      }
    }
    __syncthreads();
  }

  // After all chunks were added: the sum over the sample, for every thread.
  __device__ __forceinline__ A total(const SampleSum<A>& sum, int index) const {
    const A* values = sum.top ? sum.top + sample_ * sum.top_count : shared_.chunk_sums[index];
    return warp_sum<A>([&](int i) { return i < sum.top_count ? values[i] : A(0); });
  }

 private:
  SharedSums<A>& shared_;
  const SamplePlan& plan_;
  int64_t sample_, part_, chunk_ = 0;
  bool in_part_ = false;
};

// Passes over a sample within one launch.
struct Passes {
  int first, last;

  __device__ bool include(int pass) const { return first <= pass && pass <= last; }
};

}  // namespace pursamere::cuda
