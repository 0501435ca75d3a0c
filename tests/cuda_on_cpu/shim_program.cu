// Kernels, right ones and wrong ones, that show what the stand-in for CUDA does. test_shim.py names the mode to run.
#include <cuda_runtime.h>

#include <cstdio>
#include <map>
#include <memory>
#include <vector>

void set_reverse_order(bool reverse);  // in another translation unit

namespace {

using cuda_on_cpu::launch;

constexpr int kBlock = 256;
const dim3 kGrid(3, 2);
constexpr int kBlocks = 6;

__device__ __forceinline__ float warp_sum(float value) {
  for (int h = 16; h > 0; h /= 2) value += __shfl_xor_sync(0xffffffffu, value, h);
  return value;
}

// Each thread takes over the element of a thread in another warp, for which a barrier of its own warp is too little.
template <bool kBarrier>
__global__ void __launch_bounds__(kBlock) sum_kernel(const float* in, float* out) {
  __shared__ float held[kBlock];
  const int t = int(threadIdx.x);
  const int block = int(blockIdx.y * gridDim.x + blockIdx.x);
  held[t] = in[block * kBlock + t];
  if constexpr (kBarrier) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  const float sum = warp_sum(held[kBlock - 1 - t]);
  __syncthreads();
  if (t % warpSize == 0) held[t / warpSize] = sum;
  __syncthreads();
  if (t >= warpSize) return;
  const float total = warp_sum(t < kBlock / warpSize ? held[t] : 0.0f);
  if (t == 0) out[block] = total;
}

// Neighbors in a warp exchange their elements.
template <bool kBarrier>
__global__ void swap_kernel(const float* in, float* out) {
  __shared__ float held[warpSize];
  held[threadIdx.x] = in[threadIdx.x];
  if constexpr (kBarrier) __syncwarp();
  out[threadIdx.x] = held[threadIdx.x ^ 1];
}

// Blocks that write to one place race, whatever their barriers.
__global__ void last_block_kernel(unsigned* last) { *last = (blockIdx.z * 10 + blockIdx.y) * 10 + blockIdx.x; }

template <bool kBarrier>
void print_results() {
  std::vector<float> in(kBlocks * kBlock), sums(kBlocks), swapped(warpSize);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i % 1000);
  launch(sum_kernel<kBarrier>, kGrid, kBlock, in.data(), sums.data());
  launch(swap_kernel<kBarrier>, 1, warpSize, in.data(), swapped.data());
  for (float value : sums) std::printf("%g ", value);
  std::printf("\n");
  for (float value : swapped) std::printf("%g ", value);
  std::printf("\n");
}

void print_races() {
  print_results<false>();
  unsigned last = 0;
  launch(last_block_kernel, dim3(4, 3, 2), 1, &last);
  std::printf("%03u\n", last);
}

template <class T>
__global__ void exchange_kernel(T* out) {
  for (int m = 0; m < warpSize; ++m) {
    const T mine = T(1000 * m + int(threadIdx.x)) / T(3);
    out[m * int(blockDim.x) + int(threadIdx.x)] = __shfl_xor_sync(0xffffffffu, mine, m);
  }
}

template <class T>
void print_wrong_exchanges(const char* name) {
  std::vector<T> out(warpSize * 64);
  launch(exchange_kernel<T>, 1, 64, out.data());
  int wrong = 0;
  for (int m = 0; m < warpSize; ++m)
    for (int t = 0; t < 64; ++t) wrong += out[m * 64 + t] != T(1000 * m + (t ^ m)) / T(3);
  std::printf("%s: %d wrong\n", name, wrong);
}

__global__ void visit_kernel(int* visits, uint4* copies, const uint4* originals) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  ++visits[i];
  copies[i] = originals[i];
}

void print_visits() {
  const dim3 grid(2, 3, 4), block(5, 3, 2);
  constexpr unsigned n = 24 * 30;
  std::vector<int> visits(n);
  std::vector<uint4> originals(n), copies(n);
  for (unsigned i = 0; i < n; ++i) originals[i] = make_uint4(i, 2 * i, 3 * i, 4 * i);
  launch(visit_kernel, grid, block, visits.data(), copies.data(), originals.data());
  int wrong = 0;
  for (unsigned i = 0; i < n; ++i) wrong += visits[i] != 1 || copies[i].x != i || copies[i].w != 4 * i;
  std::printf("visits: %d wrong\n", wrong);
}

__global__ void part_of_the_block_kernel() {
  if (blockIdx.x == 2 && threadIdx.x < 100) return;
  __syncthreads();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void missing_lane_kernel(float* out) {
  if (threadIdx.x == 37) return;
  out[threadIdx.x] = warp_sum(1.0f);
}

__global__ void partial_warp_kernel(float* out) { out[threadIdx.x] = warp_sum(1.0f); }

__global__ void partial_mask_kernel() { __syncwarp(0xffffu); }

__global__ void no_such_lane_kernel() { __shfl_xor_sync(0xffffffffu, 1.0f, 32); }

__global__ void nested_kernel() { launch(two_barriers_kernel, 1, warpSize); }

// At the time of the exception some threads have not started, some wait and some are ready to go on.
__global__ void throwing_kernel(const std::shared_ptr<int> held, int thrower) {
  const std::shared_ptr<int> local = held;
  __syncthreads();
  if (int(threadIdx.x) == thrower) throw std::out_of_range("planted");
  __syncthreads();
}

// What launch throws, and whether the machine still works after it.
template <class... Parameters, class... Arguments>
void print_error(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
  try {
    launch(kernel, grid, block, arguments...);
    std::printf("%s: no error\n", name);
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", name, error.what());
  }
  print_results<true>();
}

void print_errors() {
  std::vector<float> out(64);
  print_error("part of the block", part_of_the_block_kernel, 4, kBlock);
  print_error("two barriers", two_barriers_kernel, 1, warpSize);
  print_error("missing lane", missing_lane_kernel, 1, 64, out.data());
  print_error("partial warp", partial_warp_kernel, 1, 48, out.data());
  print_error("partial mask", partial_mask_kernel, 1, 64);
  print_error("no such lane", no_such_lane_kernel, 1, 64);
  print_error("nested", nested_kernel, 1, 1);
  const auto held = std::make_shared<int>(0);
  print_error("throwing", throwing_kernel, 1, kBlock, held, 100);
  std::printf("held: %ld\n", held.use_count());
  try {
    __syncthreads();
  } catch (const std::exception& error) {
    std::printf("outside: %s\n", error.what());
  }
}

void print_configurations() {
  std::vector<int> visits(4 * 1024);
  std::vector<uint4> copies(visits.size()), originals(visits.size());
  const std::vector<std::pair<dim3, dim3>> configurations = {
      {2, 1024},           {2, 0},          {0, 32},           {{1, 0}, 32},     {2, 1025},           {1, {33, 32}},
      {1, {1, 1025}},      {1, {1, 1, 65}}, {0x80000000u, 32}, {{1, 65536}, 32}, {{1, 1, 65536}, 32}, {1, {1, 1, 64}},
      {1, {65536, 65536}},
  };
  for (const auto& [grid, block] : configurations) {
    const cudaError_t error = launch(visit_kernel, grid, block, visits.data(), copies.data(), originals.data());
    int visited = 0;
    for (int& visit : visits) visited += std::exchange(visit, 0);
    std::printf("%s %d %d\n", cudaGetErrorName(error), visited, int(cuda_on_cpu::launch_count));
  }
}

void print_device() {
  int device = -1, before = -1, after = -1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&before, cudaDevAttrMultiProcessorCount, device);
  cuda_on_cpu::multiprocessor_count = 7;
  cudaDeviceGetAttribute(&after, cudaDevAttrMultiProcessorCount, device);
  std::printf("%d %d %d %s %s\n", device, before, after, cudaGetErrorString(cudaSetDevice(0)),
              cudaGetErrorString(cudaSetDevice(1)));
}

__global__ void heap_kernel(float* out) {
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
}

// The barrier lies between the making of the array and the write beyond its end.
__global__ void stack_kernel(float* out, int n) {
  float local[8] = {};
  volatile float* held = local;
  __syncthreads();
  held[n] = 1.0f;
  out[threadIdx.x] = held[0];
}

__global__ void shared_kernel(float* out, int n) {
  __shared__ float held[kBlock];
  volatile float* h = held;
  h[int(threadIdx.x) + n] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = h[0];
}

__global__ void alignment_kernel(unsigned* out) { *reinterpret_cast<uint4*>(out + 1) = make_uint4(1, 2, 3, 4); }

}  // namespace

int main(int, char** arguments) {
  std::vector<float> memory(kBlock);
  const std::map<std::string, std::function<void()>> modes = {
      {"right", [] { print_results<true>(); }},
      {"racy", print_races},
      {"exchange",
       [] {
         print_wrong_exchanges<float>("float");
         print_wrong_exchanges<double>("double");
         print_wrong_exchanges<int>("int");
         print_wrong_exchanges<unsigned>("unsigned");
         print_wrong_exchanges<unsigned long long>("unsigned long long");
       }},
      {"visits", print_visits},
      {"errors", print_errors},
      {"configurations", print_configurations},
      {"device", print_device},
      {"inside", [&] { launch(heap_kernel, 2, kBlock / 2, memory.data()); }},
      {"heap", [&] { launch(heap_kernel, 2, kBlock / 2 + 1, memory.data()); }},
      {"stack", [&] { launch(stack_kernel, 1, kBlock, memory.data(), 8); }},
      {"shared", [&] { launch(shared_kernel, 1, kBlock, memory.data(), 1); }},
      {"alignment", [&] { launch(alignment_kernel, 1, 1, reinterpret_cast<unsigned*>(memory.data())); }},
  };
  set_reverse_order(std::string(arguments[2]) == "reverse");
  modes.at(arguments[1])();
}
