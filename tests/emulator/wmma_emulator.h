// nvcuda::wmma on the host. A warp's first thread computes for all of it: what it stores is missing
// for the others until a barrier, as on a GPU; the other threads' fragments are never filled.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <type_traits>

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}

// Rounded to the 10 bits of mantissa that tensor cores look at.
inline float __float_to_tf32(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (std::isfinite(v)) bits = (bits + 0x1000u) & ~0x1FFFu;
  std::memcpy(&v, &bits, 4);
  return v;
}

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int cols = std::is_same_v<Use, matrix_a> ? K : N;
  float values[rows][cols];
};

inline bool first_of_warp() {
  const auto& t = emulator::thread_index;
  const auto& b = emulator::block_size;
  return (t.x + b.x * (t.y + b.y * t.z)) % 32 == 0;
}

// The alignment that hardware wants of the pointer and of the distance between rows.
inline void check_alignment(const void* p, unsigned ld, size_t element) {
  if (reinterpret_cast<uintptr_t>(p) % 32 == 0 && ld * element % 16 == 0) return;
  std::fprintf(stderr, "emulator: matrix at a misaligned address\n");
  std::abort();
}

template <typename Use, int M, int N, int K, typename T, typename Layout>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, float value) {
  if (first_of_warp())
    for (auto& row : f.values)
      for (float& v : row) v = value;
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename P>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const P* p, unsigned ld) {
  check_alignment(p, ld, sizeof(P));
  if (!first_of_warp()) return;
  for (int r = 0; r < f.rows; ++r)
    for (int c = 0; c < f.cols; ++c)
      f.values[r][c] = static_cast<float>(p[std::is_same_v<Layout, row_major> ? r * ld + c : c * ld + r]);
}

template <int M, int N, int K, typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d,
              const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b,
              const fragment<accumulator, M, N, K, float>& c) {
  if (!first_of_warp()) return;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      float sum = c.values[i][j];
      for (int k = 0; k < K; ++k) sum += a.values[i][k] * b.values[k][j];
      d.values[i][j] = sum;
    }
}

template <int M, int N, int K>
void store_matrix_sync(float* p, const fragment<accumulator, M, N, K, float>& f, unsigned ld, layout_t) {
  check_alignment(p, ld, sizeof(float));
  if (!first_of_warp()) return;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) p[i * ld + j] = f.values[i][j];
}

}  // namespace wmma
}  // namespace nvcuda
