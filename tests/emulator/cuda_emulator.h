// CUDA kernels on the host: a block's threads are fibers, switched at barriers and where a warp's lanes
// meet, in random order; blocks run one after another, in random order. With AddressSanitizer and UBSan
// this shows accesses out of bounds, misaligned vector loads, missing barriers and the use of uninitialised
// shared memory (it is filled with NaN) without a GPU. Selected by DETNAS_EMULATE.
//
// Supported: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncthreads_or, __syncwarp,
// __shfl_xor_sync, __threadfence (to no effect), atomicAdd, dynamic shared memory, the matrix products of
// tensor_core_emulator.h and the copies of async_copy_emulator.h. Launches keep to what hardware takes.
#pragma once
#include <sanitizer/common_interface_defs.h>

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
#include <utility>
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
constexpr unsigned kWarp = 32;
constexpr size_t kMostShared = 99 * 1024;  // of a block that is allowed it: the least from compute capability 8.0 on

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

// Goes on with the stack `to`, leaving this one in *from: what functions keep lies on top of it. x86-64.
[[gnu::naked, gnu::noinline]] inline void switch_stacks(void** from, void* to) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
      "mov %rsp, (%rdi); mov %rsi, %rsp\n"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

// Runs one thread after another: its stack is made once.
struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  void* top;
  void* fake_stack = nullptr;
  dim3 index;
  State state = State::kDone;

  explicit Fiber(void (*enter)()) {
    uintptr_t end = reinterpret_cast<uintptr_t>(stack.get() + kStack);
    void** words = reinterpret_cast<void**>(end - end % 16) - 8;  // 6 registers, enter, nowhere to return to
    std::fill(words, words + 8, nullptr);
    words[6] = reinterpret_cast<void*>(enter);
    top = words;
  }
};

// Lanes that wait for the others of their warp, and what they brought.
struct Warp {
  void (*op)(void* const*);
  void* given[kWarp];
  unsigned arrived = 0;
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
  size_t allowed = 48 * 1024;  // bytes of shared memory for the next launch

  void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
    check_limits(grid, block, shared, std::exchange(allowed, 48 * 1024));
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

  void barrier() { wait(State::kAtBarrier); }

  // Together with the other lanes of the warp: the last to come calls `op` with what each brought.
  void of_warp(void* given, void (*op)(void* const*)) {
    Warp& warp = warps_[current_ / kWarp];
    if (warp.arrived > 0 && warp.op != op) fail("lanes of a warp at different instructions");
    warp.op = op;
    warp.given[current_ % kWarp] = given;
    if (++warp.arrived < kWarp) return wait(State::kAtWarp);
    warp.arrived = 0;
    op(warp.given);
    for (unsigned lane = 0; lane < kWarp; ++lane) fibers_[current_ / kWarp * kWarp + lane].state = State::kReady;
  }

  // Makes a copy now, or when the thread calls make_copies.
  void copy(std::function<void()> made) {
    if (random_() % 2) made();
    else copies_[current_].push_back(std::move(made));
  }
  void make_copies() {
    for (const auto& made : copies_[current_]) made();
    copies_[current_].clear();
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
  static void check_limits(const dim3& grid, const dim3& block, size_t shared, size_t allowed) {
    const size_t blocks = size_t(grid.x) * grid.y * grid.z, threads = size_t(block.x) * block.y * block.z;
    if (blocks > 0 && grid.x < 1u << 31 && grid.y < 65536 && grid.z < 65536 && threads > 0 &&
        threads <= 1024 && block.z <= 64 && shared <= allowed && allowed <= kMostShared)
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
    while (fibers_.size() < threads) fibers_.emplace_back(&Scheduler::enter);
    warps_.assign((threads + kWarp - 1) / kWarp, Warp());
    copies_.resize(fibers_.size());
    for (unsigned t = 0; t < threads; ++t) {
      fibers_[t].index = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
      fibers_[t].state = State::kReady;
    }
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0u);
    const auto in = [&](State state) {
      return std::count_if(fibers_.begin(), fibers_.begin() + threads, [&](const Fiber& f) { return f.state == state; });
    };
    for (;;) {
      std::shuffle(order.begin(), order.end(), random_);
      for (bool ran = true; ran;) {  // until all wait at a barrier
        ran = false;
        for (unsigned t : order)
          if (fibers_[t].state == State::kReady) resume(t), ran = true;
      }
      const auto done = in(State::kDone), waiting = in(State::kAtBarrier);
      if (done == threads) {
        for (const auto& copies : copies_)
          if (!copies.empty()) fail("a thread ended without its copies");
        return;
      }
      if (waiting != threads) {
        std::fprintf(stderr, "emulator: of %u threads %ld ended, %ld wait at a barrier, %ld for their warp\n",
                     threads, static_cast<long>(done), static_cast<long>(waiting),
                     static_cast<long>(threads - done - waiting));
        std::abort();
      }
      for (unsigned t = 0; t < threads; ++t) fibers_[t].state = State::kReady;
    }
  }

  void resume(unsigned t) {
    current_ = t;
    thread_index = fibers_[t].index;
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fibers_[t].stack.get(), kStack);
    switch_stacks(&main_, fibers_[t].top);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  // Back to run_block, until it resumes this thread; there may be more fibers then.
  void wait(State state) {
    fibers_[current_].state = state;
    __sanitizer_start_switch_fiber(&fibers_[current_].fake_stack, main_stack_, main_size_);
    switch_stacks(&fibers_[current_].top, main_);
    __sanitizer_finish_switch_fiber(fibers_[current_].fake_stack, &main_stack_, &main_size_);
  }

  static void enter() {
    Scheduler& s = get();
    __sanitizer_finish_switch_fiber(nullptr, &s.main_stack_, &s.main_size_);
    for (;;) {
      (*s.body_)();
      s.wait(State::kDone);
    }
  }

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<std::vector<std::function<void()>>> copies_;  // of each thread
  void* main_ = nullptr;
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
inline void __syncwarp() { emulator::Scheduler::get().of_warp(nullptr, [](void* const*) {}); }
template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
  struct Lane {
    T mine, got;
    int mask;
  } lane{value, T(), mask};
  emulator::Scheduler::get().of_warp(&lane, [](void* const* lanes) {
    const auto of = [&](int l) { return static_cast<Lane*>(lanes[l]); };
    for (int l = 0; l < 32; ++l) of(l)->got = of(l ^ of(l)->mask)->mine;
  });
  return lane.got;
}
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* p, unsigned value) {  // no other thread runs meanwhile
  const unsigned before = *p;
  *p += value;
  return before;
}

#define DETNAS_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::shared_memory)
#define DETNAS_LAUNCH(kernel, grid, block, shared, stream, ...)                      \
  emulator::Scheduler::get().launch(grid, block, static_cast<size_t>(shared), [&] {  \
    (*kernel)(__VA_ARGS__);                                                          \
  })

namespace detnas {
namespace cuda {
using Stream = int;
template <typename F>
void allow_shared(F, int64_t bytes) {
  emulator::Scheduler::get().allowed = std::max<size_t>(48 * 1024, static_cast<size_t>(bytes));
}
inline void trap() { std::abort(); }
}
}  // namespace detnas
