// What a block of products on tensor cores holds in registers, and what becomes of it there: bias, ReLU,
// statistics, the gradient through a pending map, the output of a block.
#pragma once
#include "product_join.cuh"
#include "product_tile.cuh"

namespace detnas {
namespace cuda {

constexpr int kWarpsAside = 2;  // of a block; the others are those below

using Pair = Pack<float, 2>;

__device__ inline float from_lane(float v, int distance) { return __shfl_xor_sync(~0u, v, distance); }

// Of 8 columns that 8 lanes share, 4 lanes apart, the one that is a lane's own.
__device__ inline int own_column() {
  const unsigned lane = threadIdx.x;
  return static_cast<int>((lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1));
}

// The sum over these lanes of the lane's own column. The order of each sum is fixed.
__device__ inline float add_up(float (&v)[8]) {
#pragma unroll
  for (int half = 4, distance = 16; half >= 1; half /= 2, distance /= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = from_lane(upper ? v[i] : v[i + half], distance);
      v[i] = (upper ? v[i + half] : v[i]) + other;
    }
  }
  return v[0];
}

// The reverse: what each lane has of its own column, in all lanes.
__device__ inline void give_out(float own, float (&v)[8]) {
  v[0] = own;
#pragma unroll
  for (int half = 1, distance = 4; half <= 4; half *= 2, distance *= 2) {
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

// The rows of a block's results are neighbouring pixels of a map, of which `count` are inside.
struct Line {
  int64_t first;
  int count;
  __device__ bool has(int row) const { return row < count; }
  __device__ int64_t pixel(int row) const { return first + row; }
};

// A lane's share of DOWN x ASIDE results of a warp, of 16 rows x 8 columns each (tensor_core.cuh).
template <int DOWN, int ASIDE>
struct Results {
  static constexpr int kTogether = 4;  // results aside of which 8 lanes share 8 columns
  float v[DOWN][ASIDE][4];
  int down, aside;  // the warp's first row and column in the block

  __device__ Results()
      : down(static_cast<int>(threadIdx.x) / 32 / kWarpsAside * 16 * DOWN),
        aside(static_cast<int>(threadIdx.x) / 32 % kWarpsAside * 8 * ASIDE) {
    each([](float& value) { value = 0.f; });
  }
  template <typename F>
  __device__ void each(const F& f) {
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = 0; j < ASIDE; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) f(v[i][j][e]);
  }
  // f(value, row in the block, which of the lane's columns) of kTogether results aside, from j0 on.
  template <typename F>
  __device__ void each_of(int j0, const F& f) {
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = j0; j < j0 + kTogether && j < ASIDE; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) f(v[i][j][e], row(i, e / 2), 2 * (j - j0) + e % 2);
  }
  __device__ int row(int i, int half) const { return down + 16 * i + 8 * half + threadIdx.x % 32 / 4; }
  // Of results j aside and on: the lane's k-th column.
  __device__ int column(int j, int k) const { return aside + (j + k / 2) * 8 + threadIdx.x % 4 * 2 + k % 2; }
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
#pragma unroll
    for (int j = 0; j < ASIDE; ++j) {
      float of[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) of[e] = column(j, e) < cols ? bias[column(j, e)] : 0.f;
#pragma unroll
      for (int i = 0; i < DOWN; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) v[i][j][e] += of[e % 2];
    }
  }
  __device__ void relu() {
    each([](float& value) { value = value < 0.f ? 0.f : value; });
  }

  // {mean, m2} of every column of the warp's rows, to [warps down][ld]. The mean comes first, so that
  // nothing cancels.
  __device__ void leave_moments(int rows, Pair* to, int ld) {
    const float n = rows_of(down / (16 * DOWN), rows);
#pragma unroll
    for (int j = 0; j < ASIDE; j += kTogether) {
      float sum[8], square[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) sum[k] = square[k] = 0.f;
      each_of(j, [&](float value, int row, int k) { sum[k] += row < rows ? value : 0.f; });
      const float total = add_up(sum), mean = n > 0.f ? total / n : 0.f;
      give_out(mean, sum);
      each_of(j, [&](float value, int row, int k) {
        const float d = value - sum[k];
        square[k] += row < rows ? d * d : 0.f;
      });
      leave(j, {{mean, add_up(square)}}, to, ld);
    }
  }

  // Sends gradients at (row0, col0) and on through the map pending on x; {sum g * x, sum g} of every column
  // of the warp's rows, g without scale, to [warps down][ld].
  template <typename S, int V>
  __device__ void through_pending(const Source<S>& x, int64_t row0, int col0, int rows, int cols, Pair* to,
                                  int ld) {
#pragma unroll
    for (int j0 = 0; j0 < ASIDE; j0 += kTogether) {
      float products[8], sums[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) products[k] = sums[k] = 0.f;
#pragma unroll
      for (int j = j0; j < j0 + kTogether && j < ASIDE; ++j)
        column_through_pending<S, V>(j, x, row0, col0, rows, cols, products + 2 * (j - j0), sums + 2 * (j - j0));
      const float product = add_up(products);
      leave(j0, {{product, add_up(sums)}}, to, ld);
    }
  }

  // Values of a row that a lane has side by side: of 16 bits, four lanes trade them for 16 bytes each. V > 1:
  // so many can be stored at once.
  template <typename S, int V>
  static constexpr int kWidth = V == 1 ? 1 : sizeof(S) == 2 ? 8 : 2;
  template <typename S, int V>
  static constexpr int kTrade = kWidth<S, V> == 8 ? 4 : 1;

  // The row and the first column of a lane's part of results i down and j aside, and whether it has one there.
  template <typename S, int V, typename Rows>
  __device__ bool part_at(int i, int half, int j, const Rows& rows, int cols, int& r, int& c) const {
    const int own = kTrade<S, V> == 4 ? j + static_cast<int>(threadIdx.x) % 4 : j;
    r = row(i, half);
    c = kTrade<S, V> == 4 ? aside + own * 8 : column(j, 0);
    return rows.has(r) && c < cols && own < ASIDE;
  }
  // f(i, half, j) of every part.
  template <typename S, int V, typename F>
  __device__ static void for_parts(const F& f) {
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < ASIDE; j += kTrade<S, V>) f(i, half, j);
  }
  // put(i, half, j, pixel, column, values) of every part.
  template <typename S, int V, typename Rows, typename F>
  __device__ void parts(const Rows& rows, int cols, const F& put) {
    for_parts<S, V>([&](int i, int half, int j) {
      constexpr int kLanes = kTrade<S, V>;
      int r, c;
      const bool inside = part_at<S, V>(i, half, j, rows, cols, r, c);
      Pack<S, 2> pairs[kLanes];
#pragma unroll
      for (int l = 0; l < kLanes; ++l)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          pairs[l].lane[e] = static_cast<S>(j + l < ASIDE ? v[i][(j + l) % ASIDE][2 * half + e] : 0.f);
      if constexpr (kLanes == 4) {
        uint32_t words[4];
        std::memcpy(words, pairs, 16);
        transpose(words);
        Pack<S, 8> part;
        std::memcpy(&part, words, 16);
        if (inside) put(i, half, j, rows.pixel(r), c, part);
      } else if constexpr (V > 1) {
        if (inside) put(i, half, j, rows.pixel(r), c, pairs[0]);
      } else {
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (inside && c + e < cols) put(i, half, j, rows.pixel(r), c + e, Pack<S, 1>{{pairs[0].lane[e]}});
      }
    });
  }

  // To cols of `out`, pixels ld apart; V > 1: 16 bytes at a time can be stored.
  template <typename S, int V, typename Rows>
  __device__ void store(S* out, int64_t ld, const Rows& rows, int cols) {
    parts<S, V>(rows, cols, [&](int, int, int, int64_t pixel, int c, const auto& part) {
      *reinterpret_cast<std::decay_t<decltype(part)>*>(out + pixel * ld + c) = part;
    });
  }

  // What passes a block by, where its last product has columns: loads that are in flight together.
  template <typename S, int V>
  struct Passing {
    Pack<S, kWidth<S, V>> part[DOWN][2][(ASIDE + kTrade<S, V> - 1) / kTrade<S, V>];

    template <typename Rows>
    __device__ void fetch(const Results& of, const Join<S>& to, const Rows& rows, int col0, int cols) {
      for_parts<S, V>([&](int i, int half, int j) {
        int r, c;
        if (of.template part_at<S, V>(i, half, j, rows, cols, r, c))
          part[i][half][j / kTrade<S, V>] =
              load<S, kWidth<S, V>>(to.left + rows.pixel(r) * to.ld_left + col0 + c);
      });
    }
  };
  // Results at col0 and on of a product into the output of its block.
  template <typename S, int V, typename Rows>
  __device__ void join(const Join<S>& to, const Passing<S, V>& passing, const Rows& rows, int col0, int cols) {
    if constexpr (V > 1) {
      if (to.dense())
        return parts<S, V>(rows, cols, [&](int i, int half, int j, int64_t pixel, int c, const auto& part) {
          to.put(pixel, col0 + c, part, passing.part[i][half][j / kTrade<S, V>]);
        });
    }
    parts<S, 1>(rows, cols, [&](int, int, int, int64_t pixel, int c, const Pack<S, 1>& value) {
      *to.at(pixel, to.offset + col0 + c) = value.lane[0];
      if (to.left) *to.at(pixel, col0 + c) = to.left[pixel * to.ld_left + col0 + c];
    });
  }

 private:
  template <typename S, int V>
  __device__ void column_through_pending(int j, const Source<S>& x, int64_t row0, int col0, int rows, int cols,
                                         float* products, float* sums) {
    const int c = column(j, 0);
    float scale[2], shift[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool pending = x.scale && c + e < cols;
      scale[e] = pending ? x.scale[col0 + c + e] : 1.f;
      shift[e] = pending ? x.shift[col0 + c + e] : 0.f;
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
          products[e] += g * value;
          sums[e] += g;
          g *= scale[e];
        }
      }
  }
  // Two sums over the lane's own column of kTogether results from j on.
  __device__ void leave(int j, const Pair& sums, Pair* to, int ld) const {
    if (j + own_column() / 2 < ASIDE) to[down / (16 * DOWN) * ld + column(j, own_column())] = sums;
  }
};

}  // namespace cuda
}  // namespace detnas
