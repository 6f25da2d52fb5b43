// What a block of products on tensor cores holds in registers, and what becomes of it there: bias, ReLU,
// statistics, the gradient through a pending map. kWarpsDown x kWarpsAside warps share its rows and columns.
#pragma once
#include "tensor_core.cuh"

namespace detnas {
namespace cuda {

constexpr int kWarpsDown = 4, kWarpsAside = 2;
constexpr int kGemmThreads = 32 * kWarpsDown * kWarpsAside;

using Pair = Pack<float, 2>;

__device__ inline float from_lane(float v, int distance) { return __shfl_xor_sync(~0u, v, distance); }

// Sums over the 8 lanes that have the same columns, 4 lanes apart: of N columns, N / 8 are left to each, the
// returned one and those after it. The order of each sum is fixed.
template <int N>
__device__ inline int add_up(float (&v)[N]) {
  static_assert(N % 8 == 0, "columns that 8 lanes can share");
  int first = 0;
#pragma unroll
  for (int half = N / 2, distance = 16; distance >= 4; half /= 2, distance /= 2) {
    const bool upper = threadIdx.x & distance;
    if (upper) first += half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = from_lane(upper ? v[i] : v[i + half], distance);
      v[i] = (upper ? v[i + half] : v[i]) + other;
    }
  }
  return first;
}

// The reverse: N / 8 values of each lane become N that all 8 lanes have.
template <int N>
__device__ inline void give_out(float (&v)[N]) {
#pragma unroll
  for (int half = N / 8, distance = 4; distance <= 16; half *= 2, distance *= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = from_lane(v[i], distance);
      v[i + half] = upper ? v[i] : other;
      v[i] = upper ? other : v[i];
    }
  }
}

// Item i of lane t of 4 becomes item t of lane i.
__device__ inline void transpose(uint32_t (&v)[4]) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & distance) continue;
      const uint32_t other = __shfl_xor_sync(~0u, upper ? v[i] : v[i + distance], distance);
      (upper ? v[i] : v[i + distance]) = other;
    }
  }
}

// A lane's share of DOWN x ASIDE results of a warp, of 16 rows x 8 columns each (tensor_core.cuh).
template <int DOWN, int ASIDE>
struct Results {
  static constexpr int kColumns = 2 * ASIDE;  // of a lane
  float v[DOWN][ASIDE][4];
  int down, aside;  // the warp's first row and column in the block

  __device__ Results()
      : down(static_cast<int>(threadIdx.x) / 32 / kWarpsAside * 16 * DOWN),
        aside(static_cast<int>(threadIdx.x) / 32 % kWarpsAside * 8 * ASIDE) {
    each([](float& value, int, int) { value = 0.f; });
  }
  // f(value, row, k): its row in the block, and which of the lane's columns it lies in.
  template <typename F>
  __device__ void each(const F& f) {
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = 0; j < ASIDE; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) f(v[i][j][e], row(i, e / 2), 2 * j + e % 2);
  }
  __device__ int row(int i, int half) const { return down + 16 * i + 8 * half + threadIdx.x % 32 / 4; }
  __device__ int column(int k) const { return aside + k / 2 * 8 + threadIdx.x % 4 * 2 + k % 2; }
  // Rows of a block with `rows` in all that the warps of row `warp` have.
  static __device__ float rows_of(int warp, int rows) {
    const int left = rows - warp * 16 * DOWN, most = 16 * DOWN;
    return static_cast<float>(left < 0 ? 0 : left < most ? left : most);
  }

  // A product of tiles a and b at a depth of them.
  template <typename S, typename A, typename B>
  __device__ void add(const S* a, const S* b, int depth) {
    uint32_t left[DOWN][4], right[ASIDE / 2][4];
#pragma unroll
    for (int i = 0; i < DOWN; ++i) A::fragments(left[i], a, down + 16 * i, depth);
#pragma unroll
    for (int j = 0; j < ASIDE / 2; ++j) B::fragments(right[j], b, aside + 16 * j, depth);
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = 0; j < ASIDE; ++j) mma<S>(v[i][j], left[i], right[j / 2][j % 2], right[j / 2][j % 2 + 2]);
  }

  __device__ void add_bias(const float* bias, int cols) {
    float of[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) of[k] = column(k) < cols ? bias[column(k)] : 0.f;
    each([&](float& value, int, int k) { value += of[k]; });
  }
  __device__ void relu() {
    each([](float& value, int, int) { value = value < 0.f ? 0.f : value; });
  }

  // {mean, m2} of every column of the warp's rows, to [kWarpsDown][ld]. The mean comes first, so that
  // nothing cancels.
  __device__ void leave_moments(int rows, Pair* to, int ld) {
    const float n = rows_of(down / (16 * DOWN), rows);
    float sum[kColumns], square[kColumns], mean[kColumns / 8];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) sum[k] = square[k] = 0.f;
    each([&](float value, int row, int k) { sum[k] += row < rows ? value : 0.f; });
    const int first = add_up(sum);
#pragma unroll
    for (int k = 0; k < kColumns / 8; ++k) sum[k] = mean[k] = n > 0.f ? sum[k] / n : 0.f;
    give_out(sum);
    each([&](float value, int row, int k) {
      const float d = value - sum[k];
      square[k] += row < rows ? d * d : 0.f;
    });
    add_up(square);
    leave(first, mean, square, to, ld);
  }

  // Sends gradients at (row0, col0) and on through the map pending on x; {sum g * x, sum g} of every column
  // of the warp's rows, g without scale, to [kWarpsDown][ld].
  template <typename S, int V>
  __device__ void through_pending(const Source<S>& x, int64_t row0, int col0, int rows, int cols, Pair* to,
                                  int ld) {
    float products[kColumns], sums[kColumns];
#pragma unroll
    for (int j = 0; j < ASIDE; ++j) {
      const int c = column(2 * j);
      float scale[2], shift[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool pending = x.scale && c + e < cols;
        scale[e] = pending ? x.scale[col0 + c + e] : 1.f;
        shift[e] = pending ? x.shift[col0 + c + e] : 0.f;
        products[2 * j + e] = sums[2 * j + e] = 0.f;
      }
#pragma unroll
      for (int i = 0; i < DOWN; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = row(i, half);
          if (r >= rows || c >= cols) continue;
          const S* from = x.data + (row0 + r) * x.ld + col0 + c;
          Pack<S, 2> pair{};
          if constexpr (V > 1) pair = *reinterpret_cast<const Pack<S, 2>*>(from);
          else pair.lane[0] = from[0], pair.lane[1] = c + 1 < cols ? from[1] : from[0];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = static_cast<float>(pair.lane[e]);
            float& g = v[i][j][2 * half + e];
            if (x.relu && value * scale[e] + shift[e] <= 0.f) g = 0.f;
            products[2 * j + e] += g * value;
            sums[2 * j + e] += g;
            g *= scale[e];
          }
        }
    }
    const int first = add_up(products);
    add_up(sums);
    leave(first, products, sums, to, ld);
  }

  // To rows x cols at `out`, rows ld apart; V > 1: 16 bytes at a time can be stored.
  template <typename S, int V>
  __device__ void store(S* out, int64_t ld, int rows, int cols) {
    constexpr int kTogether = V > 1 && sizeof(S) == 2 ? 4 : 1;  // lanes that trade values for 16 bytes of a row
    static_assert(ASIDE % kTogether == 0, "columns that 4 lanes can trade");
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row(i, half);
        S* to = out + r * ld;
#pragma unroll
        for (int j = 0; j < ASIDE; j += kTogether) {
          Pack<S, 2> pairs[kTogether];
#pragma unroll
          for (int l = 0; l < kTogether; ++l)
#pragma unroll
            for (int e = 0; e < 2; ++e) pairs[l].lane[e] = static_cast<S>(v[i][j + l][2 * half + e]);
          if constexpr (kTogether == 4) {
            uint32_t words[4];
            std::memcpy(words, pairs, 16);
            transpose(words);
            const int c = aside + (j + static_cast<int>(threadIdx.x) % 4) * 8;
            Pack<S, 8> row_part;
            std::memcpy(&row_part, words, 16);
            if (r < rows && c < cols) *reinterpret_cast<Pack<S, 8>*>(to + c) = row_part;
          } else {
            const int c = column(2 * j);
            if (r >= rows || c >= cols) continue;
            if constexpr (V > 1) *reinterpret_cast<Pack<S, 2>*>(to + c) = pairs[0];
            else to[c] = pairs[0].lane[0];
            if (V == 1 && c + 1 < cols) to[c + 1] = pairs[0].lane[1];
          }
        }
      }
  }

 private:
  // The lane's columns of two sums, from its `first` on; N: at least those.
  template <int N, int M>
  __device__ void leave(int first, const float (&a)[N], const float (&b)[M], Pair* to, int ld) const {
    to += down / (16 * DOWN) * ld;
#pragma unroll
    for (int k = 0; k < kColumns / 8; ++k) to[column(first + k)] = {{a[k], b[k]}};
  }
};

}  // namespace cuda
}  // namespace detnas
