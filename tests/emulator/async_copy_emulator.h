// Asynchronous copies on the host, for csrc/cuda/async_copy.cuh: each is made when it is asked for, or when
// its thread waits for it, at random. So whoever reads too early, or writes too late, is seen.
#pragma once

namespace detnas {
namespace cuda {

inline void copy_async(void* shared, const void* global, bool live) {
  const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
  if (misaligned(shared) || misaligned(global)) emulator::fail("copy at a misaligned address");
  emulator::Scheduler::get().copy([=] {
    if (live) std::memcpy(shared, global, 16);
    else std::memset(shared, 0, 16);
  });
}

inline void wait_copies() { emulator::Scheduler::get().make_copies(); }

}  // namespace cuda
}  // namespace detnas
