// A warp's instructions on tensor cores: fragments from shared memory (ldmatrix), and products of them
// (mma), as the PTX ISA lays them out over lanes. A warp computes 16 rows x 8 columns; lane 4 * g + t holds
// rows g and g + 8 of columns 2 * t and 2 * t + 1.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstring>
#include <type_traits>

#include "platform.cuh"

#ifdef DETNAS_EMULATE
#include "tensor_core_emulator.h"
#else
namespace detnas {
namespace cuda {

// Four matrices of 8 rows of 16 bytes in shared memory: row r of matrix m lies where lane 8 * m + r says.
// Lane 4 * g + t gets the t-th 4 bytes of row g of each; or, TRANSPOSED, of elements of 2 bytes those of
// rows 2 * t and 2 * t + 1 in column g.
template <bool TRANSPOSED>
__device__ inline void ldmatrix(uint32_t (&to)[4], const void* row) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// Rounded to the 10 bits of mantissa that tensor cores look at.
__device__ inline float to_tf32(float v) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return __uint_as_float(bits);
#else
  return v;  // no products of such numbers there
#endif
}

#define DETNAS_MMA(shape, types, a0, a1, a2, a3)                                                           \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." types ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, " \
               "{%8, %9}, {%0, %1, %2, %3};"                                                               \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))

// sums += a * b: a of 16 rows and 32 bytes of depth, b of 8 columns.
template <typename S>
__device__ inline void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same<S, float>::value) {
    DETNAS_MMA("m16n8k8", "tf32.tf32", a[0], a[1], a[2], a[3]);
  } else if constexpr (std::is_same<S, c10::BFloat16>::value) {
    DETNAS_MMA("m16n8k16", "bf16.bf16", a[0], a[1], a[2], a[3]);
  } else {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    DETNAS_MMA("m16n8k16", "f16.f16", a[0], a[1], a[2], a[3]);
#else  // half the depth at a time
    const uint32_t halves[2][3] = {{a[0], a[1], b0}, {a[2], a[3], b1}};
#pragma unroll
    for (const auto& half : halves)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                   "{%0, %1, %2, %3};"
                   : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                   : "r"(half[0]), "r"(half[1]), "r"(half[2]));
#endif
  }
}
#undef DETNAS_MMA

}  // namespace cuda
}  // namespace detnas
#endif

namespace detnas {
namespace cuda {

// Whether what is compiled has products of this dtype: float16 from compute capability 7.5, all from 8.0.
template <typename S>
__device__ constexpr bool multiplies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
  return false;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return std::is_same<S, c10::Half>::value;
#else
  return true;
#endif
}

// Depth of a product: 32 bytes.
template <typename S>
constexpr int kProductDepth = 32 / static_cast<int>(sizeof(S));

// Fragments of 16 rows and 32 bytes of depth at (row, depth) of a tile in shared memory, whose rows (or,
// without DEPTH_MINOR, steps of depth) are LD elements apart and begin at multiples of 16 bytes: rows 0 to 7
// and 8 to 15 of the first half of the depth, then of the second. As a first operand they are one fragment,
// as a second one {0, 2} and {1, 3} are those of 8 columns each.
template <typename S, bool DEPTH_MINOR, int LD>
__device__ inline void load_fragments(uint32_t (&to)[4], const S* tile, int row, int depth) {
  constexpr int kHalf = kProductDepth<S> / 2;
  const int lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
  if constexpr (DEPTH_MINOR) {
    ldmatrix<false>(to, tile + (row + matrix % 2 * 8 + line) * LD + depth + matrix / 2 * kHalf);
  } else if constexpr (sizeof(S) == 2) {
    ldmatrix<true>(to, tile + (depth + matrix / 2 * kHalf + line) * LD + row + matrix % 2 * 8);
  } else {  // nothing transposes 4 bytes; distances of 8 modulo 32 meet every bank once
    const S* from = tile + (depth + lane % 4) * LD + row + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) std::memcpy(&to[i], from + i / 2 * kHalf * LD + i % 2 * 8, sizeof(to[i]));
  }
}

}  // namespace cuda
}  // namespace detnas
