// Runs the threads of a CUDA block as fibers of one host thread.
//
// Blocks run one after the other. In a block, a warp runs until each of its lanes has exited or waits at __syncthreads
// before the next warp gets its turn, and a lane until its next barrier or shuffle. So where a barrier is missing, some
// threads are far ahead of others, and the forward and the reverse order give different results.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

// Settings, each read when a launch starts.
inline bool reverse_order = false;    // of the blocks, of the warps in a block and of the lanes in a warp
inline int multiprocessor_count = 2;  // small, so that few elements already give a multiprocessor many blocks

inline int64_t launch_count = 0;  // of the launches with a valid configuration

namespace detail {

enum class State { fresh, ready, at_syncthreads, at_syncwarp, at_shuffle, exited };

struct Context {
  ucontext_t start;
  bool entered = false;
  void* registers[5];  // of __builtin_setjmp, once it is entered
};

struct Fibre {
  Context context;
  void* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's, while the fiber is suspended
  State state = State::fresh;
  uint64_t sent = 0, received = 0;  // at a shuffle
  int lane_mask = 0;
};

struct Unwind {};  // thrown in the suspended fibers after an error, so that their stacks are empty again

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackSize = 256 << 10;
inline void start_switch(void** save, const void* to, size_t size) { __sanitizer_start_switch_fiber(save, to, size); }
inline void finish_switch(void* saved, const void** from, size_t* size) {
  __sanitizer_finish_switch_fiber(saved, from, size);
}
#else
constexpr size_t kStackSize = 64 << 10;
inline void start_switch(void**, const void*, size_t) {}
inline void finish_switch(void*, const void**, size_t*) {}
#endif

// swapcontext saves the signal mask at every switch, a system call that would take most of the time. Not sanitized, since
// AddressSanitizer clears the red zones of the whole stack before a longjmp.
[[gnu::noinline, gnu::no_sanitize_address]] inline void switch_context(Context& from, Context& to) {
  if (__builtin_setjmp(from.registers)) return;
  from.entered = true;
  if (to.entered) __builtin_longjmp(to.registers, 1);
  setcontext(&to.start);
}

class Machine {
 public:
  void run(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    // There is one machine and one shared memory: while it works, neither a kernel nor another host thread may launch.
    if (busy_.test_and_set()) throw std::logic_error("cuda_on_cpu: a launch while another one runs");
    ++launch_count;
    kernel_ = &kernel;
    reverse_ = reverse_order;
    threads_ = int(block.x * block.y * block.z);
    gridDim = grid;
    blockDim = block;
    try {
      while (int(fibers_.size()) < threads_) add_fibre();
      const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
      for (int64_t i = 0; i < blocks; ++i) run_block(reverse_ ? blocks - 1 - i : i);
    } catch (...) {
      unwind_suspended();
      busy_.clear();
      throw;
    }
    busy_.clear();
  }

  Fibre& current() {
    if (current_ == nullptr) throw std::logic_error("cuda_on_cpu: a barrier or a shuffle outside of a kernel");
    return *current_;
  }

  void wait(State at) {
    Fibre& self = current();
    self.state = at;
    suspend(self);
    if (unwinding_) throw Unwind{};
  }

 private:
  // Fibres are never freed: after its thread each waits for the next one, of this launch or a later one.
  void add_fibre() {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));  // one below the stack stays closed, so that an overflow crashes
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, page + kStackSize, PROT_NONE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    void* stack = static_cast<char*>(memory) + page;
    if (mprotect(stack, kStackSize, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    Fibre& fiber = fibers_.emplace_back();
    fiber.stack = stack;
    getcontext(&fiber.context.start);
    fiber.context.start.uc_stack.ss_sp = stack;
    fiber.context.start.uc_stack.ss_size = kStackSize;
    fiber.context.start.uc_link = nullptr;
    makecontext(&fiber.context.start, &Machine::fiber_main, 0);
    fiber.context.start.uc_stack = stack_t{};  // or AddressSanitizer would forget this stack's red zones at every switch
  }

  static void fiber_main();

  void run_thread() {
    try {
      (*kernel_)();
    } catch (const Unwind&) {
    } catch (...) {
      error_ = std::current_exception();  // it must not leave this stack
    }
    current_->state = State::exited;
    suspend(*current_);
  }

  void resume(int thread) {
    Fibre& fiber = fibers_[thread];
    const unsigned t = unsigned(thread);
    threadIdx = uint3{t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    fiber.state = State::ready;
    current_ = &fiber;
    void* fake_stack = nullptr;
    start_switch(&fake_stack, fiber.stack, kStackSize);
    switch_context(host_, fiber.context);
    finish_switch(fake_stack, nullptr, nullptr);
    current_ = nullptr;
  }

  void suspend(Fibre& self) {
    start_switch(&self.fake_stack, host_stack_, host_stack_size_);
    switch_context(self.context, host_);
    finish_switch(self.fake_stack, &host_stack_, &host_stack_size_);
  }

  void run_block(int64_t block) {
    blockIdx.x = unsigned(block % gridDim.x);
    blockIdx.y = unsigned(block / gridDim.x % gridDim.y);
    blockIdx.z = unsigned(block / gridDim.x / gridDim.y);
    set_state(0, threads_, State::fresh);
    const int warps = (threads_ + warpSize - 1) / warpSize;
    for (;;) {
      for (int i = 0; i < warps; ++i) {
        const int first = warpSize * (reverse_ ? warps - 1 - i : i);
        const int lanes = std::min(warpSize, threads_ - first);
        do run_lanes(first, lanes);
        while (pass_warp_operation(first, lanes));
      }
      if (count(0, threads_, State::exited) == threads_) return;
      if (count(0, threads_, State::at_syncthreads) < threads_) throw std::runtime_error(deadlock());
      set_state(0, threads_, State::ready);
    }
  }

  void run_lanes(int first, int lanes) {
    for (int i = 0; i < lanes; ++i) {
      const int thread = first + (reverse_ ? lanes - 1 - i : i);
      const State state = fibers_[thread].state;
      if (state != State::fresh && state != State::ready) continue;
      resume(thread);
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

  bool pass_warp_operation(int first, int lanes) {
    const bool shuffle = count(first, lanes, State::at_shuffle) == warpSize;
    if (!shuffle && count(first, lanes, State::at_syncwarp) < warpSize) return false;
    Fibre* lane[warpSize];
    for (int i = 0; i < warpSize; ++i) lane[i] = &fibers_[first + i];
    if (shuffle)
      for (int i = 0; i < warpSize; ++i) lane[i]->received = lane[i ^ lane[i]->lane_mask]->sent;
    set_state(first, lanes, State::ready);
    return true;
  }

  void unwind_suspended() {
    unwinding_ = true;
    for (int i = 0; i < int(fibers_.size()); ++i) {
      const State state = fibers_[i].state;
      if (state != State::fresh && state != State::exited) resume(i);
    }
    unwinding_ = false;
    error_ = nullptr;
  }

  int count(int first, int n, State state) const {
    const auto begin = fibers_.begin() + first;
    return int(std::count_if(begin, begin + n, [=](const Fibre& fiber) { return fiber.state == state; }));
  }

  void set_state(int first, int n, State state) {
    for (int i = first; i < first + n; ++i) fibers_[i].state = state;
  }

  std::string deadlock() const {
    const auto threads = [this](State state) { return std::to_string(count(0, threads_, state)); };
    return "cuda_on_cpu: deadlock in block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + ") of " + std::to_string(threads_) +
           " threads: " + threads(State::at_syncthreads) + " wait at __syncthreads, " + threads(State::at_syncwarp) +
           " at __syncwarp, " + threads(State::at_shuffle) + " at a warp shuffle, " + threads(State::exited) +
           " have exited";
  }

  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  const std::function<void()>* kernel_ = nullptr;
  bool reverse_ = false;
  int threads_ = 0;
  std::deque<Fibre> fibers_;  // thread i of the block runs on fiber i; contexts must not move, hence a deque
  Fibre* current_ = nullptr;
  std::exception_ptr error_;
  bool unwinding_ = false;
  Context host_;
  const void* host_stack_ = nullptr;
  size_t host_stack_size_ = 0;
};

inline Machine machine;

inline void Machine::fiber_main() {
  finish_switch(nullptr, &machine.host_stack_, &machine.host_stack_size_);
  for (;;) machine.run_thread();
}

}  // namespace detail
}  // namespace cuda_on_cpu
