// CUDA kernels on the host: a block's threads are fibers, switched at barriers, in random order;
// blocks run one after another, in random order. With AddressSanitizer and UBSan this shows
// accesses out of bounds, misaligned vector loads, missing barriers and the use of uninitialised
// shared memory (it is filled with NaN) without a GPU. Selected by DETNAS_EMULATE.
//
// Supported: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncthreads_or, __syncwarp and
// __threadfence (to no effect), atomicAdd, dynamic shared memory, and the matrix products of wmma_emulator.h. Launches keep to what
// hardware takes.
#pragma once
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(int64_t x_ = 1, int64_t y_ = 1, int64_t z_ = 1)
      : x(static_cast<unsigned>(x_)), y(static_cast<unsigned>(y_)), z(static_cast<unsigned>(z_)) {}
};

namespace emulator {

inline dim3 thread_index, block_index, block_size, grid_dims;
inline unsigned char* shared_memory;

constexpr size_t kStack = 256 * 1024;

struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  ucontext_t context;
  void* fake_stack = nullptr;
  dim3 index;
  bool done = false;
};

class Scheduler {
 public:
  static Scheduler& get() {
    static Scheduler scheduler;
    return scheduler;
  }
  void seed(unsigned value) { random_.seed(value); }

  long launches = 0;        // until now
  bool only_count = false;  // what is launched does not run, and leaves results as they were allocated

  void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
    check_limits(grid, block, shared);
    ++launches;
    if (only_count) return;
    grid_dims = grid;
    block_size = block;
    std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random_);
    for (unsigned b : order) {
      block_index = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
      run_block(block, shared, body);
    }
  }

  void barrier() {
    Fiber& f = fibers_[current_];
    __sanitizer_start_switch_fiber(&f.fake_stack, main_stack_, main_size_);
    swapcontext(&f.context, &main_);
    __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
  }

  // Whether any thread's value is not zero; the barriers keep this vote apart from the next.
  bool any(bool value) {
    any_ = any_ || value;
    barrier();
    const bool result = any_;
    barrier();
    any_ = false;
    barrier();
    return result;
  }

 private:
  static void check_limits(const dim3& grid, const dim3& block, size_t shared) {
    const size_t blocks = size_t(grid.x) * grid.y * grid.z, threads = size_t(block.x) * block.y * block.z;
    if (blocks > 0 && grid.x < 1u << 31 && grid.y < 65536 && grid.z < 65536 && threads > 0 &&
        threads <= 1024 && block.z <= 64 && shared <= 48 * 1024)
      return;
    std::fprintf(stderr, "emulator: no GPU launches (%u, %u, %u) blocks of (%u, %u, %u), %zu bytes\n",
                 grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    std::abort();
  }

  void run_block(dim3 block, size_t shared, const std::function<void()>& body) {
    const unsigned threads = block.x * block.y * block.z;
    // A buffer of its own for every block, so that its end is guarded; NaN in every float.
    const auto release = [](unsigned char* p) { operator delete[](p, std::align_val_t(128)); };
    std::unique_ptr<unsigned char[], decltype(release)> memory(
        new (std::align_val_t(128)) unsigned char[shared], release);
    std::memset(memory.get(), 0xFF, shared);
    shared_memory = memory.get();
    body_ = &body;
    while (fibers_.size() < threads) fibers_.emplace_back();
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& f = fibers_[t];
      f.index = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
      f.done = false;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;
      makecontext(&f.context, &Scheduler::enter, 0);
    }
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0u);
    for (;;) {
      std::shuffle(order.begin(), order.end(), random_);
      for (unsigned t : order) resume(t);
      const auto done = std::count_if(fibers_.begin(), fibers_.begin() + threads,
                                      [](const Fiber& f) { return f.done; });
      if (done == threads) return;
      if (done != 0) {
        std::fprintf(stderr, "emulator: %ld of %u threads ended while others wait at a barrier\n",
                     static_cast<long>(done), threads);
        std::abort();
      }
    }
  }

  void resume(unsigned t) {
    current_ = t;
    thread_index = fibers_[t].index;
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fibers_[t].stack.get(), kStack);
    swapcontext(&main_, &fibers_[t].context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  static void enter() {
    Scheduler& s = get();
    __sanitizer_finish_switch_fiber(nullptr, &s.main_stack_, &s.main_size_);
    (*s.body_)();
    s.fibers_[s.current_].done = true;
    __sanitizer_start_switch_fiber(nullptr, s.main_stack_, s.main_size_);
    setcontext(&s.main_);
  }

  std::vector<Fiber> fibers_;
  ucontext_t main_;
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
  unsigned current_ = 0;
  bool any_ = false;
  const std::function<void()>* body_ = nullptr;
  std::mt19937 random_{0};
};

}  // namespace emulator

// For benchmarks/launches.py.
extern "C" {
[[gnu::used, gnu::visibility("default")]] inline long detnas_launches() {
  return emulator::Scheduler::get().launches;
}
[[gnu::used, gnu::visibility("default")]] inline void detnas_only_count(int on) {
  emulator::Scheduler::get().only_count = on != 0;
}
}

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_dims
inline void __syncthreads() { emulator::Scheduler::get().barrier(); }
inline int __syncthreads_or(int value) { return emulator::Scheduler::get().any(value != 0); }
inline void __syncwarp() {}
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* p, unsigned value) {  // no other thread runs meanwhile
  const unsigned before = *p;
  *p += value;
  return before;
}

#include "wmma_emulator.h"

#define DETNAS_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::shared_memory)
#define DETNAS_LAUNCH(kernel, grid, block, shared, stream, ...)                      \
  emulator::Scheduler::get().launch(grid, block, static_cast<size_t>(shared), [&] {  \
    (*kernel)(__VA_ARGS__);                                                          \
  })

namespace detnas {
namespace cuda {
using Stream = int;
inline void trap() { std::abort(); }
}
}  // namespace detnas
