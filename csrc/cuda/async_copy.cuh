// Copies from global into shared memory that go on while the thread computes: cp.async of compute
// capability 8.0; before it they are made at once.
#pragma once
#include "platform.cuh"

#ifdef DETNAS_EMULATE
#include "async_copy_emulator.h"
#else
namespace detnas {
namespace cuda {

// 16 bytes at multiples of 16; zero unless `live`, from what may be any valid address then.
__device__ inline void copy_async(void* shared, const void* global, bool live) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(to), "l"(__cvta_generic_to_global(global)), "r"(live ? 16 : 0) : "memory");
#else
  *static_cast<uint4*>(shared) = live ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}

// Until the thread's own copies are in shared memory; others see them after a barrier.
__device__ inline void wait_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace cuda
}  // namespace detnas
#endif
