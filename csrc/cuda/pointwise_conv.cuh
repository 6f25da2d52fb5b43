// Matrix products on tensor cores for 1x1 convolutions: what is pending on an operand is applied
// while its tile is copied to shared memory; bias, ReLU, statistics or the gradient of a pending map
// while the result leaves it.
//
// Terminology: out[rows][cols] = sum over depth of a * b. Every operand is a matrix
// [major][minor], minor contiguous, channels along minor:
//   forward      rows pixels, cols out channels, depth in channels:  a = x,    b = weight
//   grad_x       rows pixels, cols in channels,  depth out channels: a = grad, b = weight
//   grad_weight  rows out channels, cols in channels, depth pixels:  a = grad, b = x
// A block makes BM x BN results; x is read once for every BN columns, the repetitions from L2. What is
// pending on x without ReLU moves into the weights of forward (Pending::kFolded).
#pragma once
#include <utility>

#include "bn_stats.cuh"
#include "product_results.cuh"

namespace detnas {
namespace cuda {

enum class Product { kForward, kGradX, kGradWeight };

template <typename S>
struct Gemm {
  Source<S> a, b;  // what is pending on b in forward is folded into it
  int64_t rows, depth, depth_per_split;
  int cols;
  // forward and grad_x: out, with the distance between its rows
  S* out;
  int64_t ld_out;
  // forward
  const float* bias;
  bool out_relu;
  float *mean, *m2;  // partial moments [row tiles][channels], or null
  unsigned* tickets; // one for each tile of columns
  StatsOut stats;
  int in_channels;  // of what is pending: those of all groups
  Join<S> join;     // in the place of out, where it is set; nothing may be pending with ReLU, no statistics
  // grad_x: the map pending on x; partial sums [row tiles][2][channels] of grad * x and grad, or null
  Source<S> x;
  float* sums;
  int64_t channels;  // of a partial row: those of all groups
  // grad_weight: [splits][rows][cols]
  float* partial;
};

// READY: nothing is to be done to a in forward.
template <typename S, int V, Product P, bool READY, int BM, int BN>
struct Shape {
  static constexpr bool kForward = P == Product::kForward;
  static constexpr Pending kOfA = !kForward ? Pending::kGradient : READY ? Pending::kNothing : Pending::kAffine;
  static constexpr Pending kOfB = P == Product::kGradWeight ? Pending::kAffine
                                  : kForward && READY       ? Pending::kFolded
                                                            : Pending::kNothing;
  static constexpr int kDepth = 64 / sizeof(S);  // 64 bytes of depth at a time
  static constexpr int kThreads = BM * BN > 128 * 64 ? 512 : 256, kWarpsDown = kThreads / 32 / kWarpsAside;
  static constexpr int kBlocks = 512 / kThreads;  // of a multiprocessor, at least: 128 registers a thread
  using A = ProductTile<S, V, P != Product::kGradWeight, BM, kDepth, kOfA, kThreads>;
  using B = ProductTile<S, V, kForward, BN, kDepth, kOfB, kThreads>;
  using Results = cuda::Results<BM / kWarpsDown / 16, BN / kWarpsAside / 8>;
  static constexpr int64_t kShared = 2 * (A::kSize + B::kSize) * sizeof(S);
  // In the place of the tiles: sums of columns [kWarpsDown][BN], and a constant for each.
  static constexpr int64_t kSums = kWarpsDown * BN * sizeof(Pair);
  static_assert(kShared >= kSums + BN * static_cast<int64_t>(sizeof(float)), "column sums' memory");
  static_assert(kShared >= 4 * kThreads * static_cast<int64_t>(sizeof(double)), "merge_rows' memory");
};

template <typename S, int V, Product P, bool READY, int BM, int BN>
__global__ void __launch_bounds__((Shape<S, V, P, READY, BM, BN>::kThreads), (Shape<S, V, P, READY, BM, BN>::kBlocks))
gemm_kernel(Gemm<S> g) {
  if constexpr (multiplies<S>()) {
    using Form = Shape<S, V, P, READY, BM, BN>;
    using TileA = typename Form::A;
    using TileB = typename Form::B;
    constexpr int kDepth = Form::kDepth, kStep = kProductDepth<S>;
    DETNAS_SHARED(S, shared);
    const int col_tiles = (g.cols + BN - 1) / BN;
    const int64_t row_tile = blockIdx.x / col_tiles, row0 = row_tile * BM;
    const int col0 = static_cast<int>(blockIdx.x % col_tiles) * BN;
    // Of the batch: pixels and vectors of those before it.
    const int64_t first_row = P == Product::kForward ? blockIdx.y * g.rows : 0;
    const int vectors = P == Product::kForward ? static_cast<int>(blockIdx.y) * g.in_channels : 0;
    const int64_t begin = blockIdx.z * g.depth_per_split;
    const int64_t end = begin + g.depth_per_split < g.depth ? begin + g.depth_per_split : g.depth;

    typename Form::Results results;
    TileA a;
    TileB b;
    a.place(first_row + row0, first_row + g.rows, begin, end);
    b.place(col0, g.cols, begin, end);
    a.fetch(g.a);
    b.fetch(g.b);
    a.store(g.a, shared, vectors);
    b.store(g.b, shared + TileA::kSize, vectors);
    __syncthreads();
    int stage = 0;
    for (int64_t d = begin; d < end; d += kDepth, stage ^= 1) {
      const bool more = d + kDepth < end;
      if (more) {  // in flight during the products
        a.place(first_row + row0, first_row + g.rows, d + kDepth, end);
        b.place(col0, g.cols, d + kDepth, end);
        a.fetch(g.a);
        b.fetch(g.b);
      }
      const S* tile_a = shared + stage * (TileA::kSize + TileB::kSize);
      const S* tile_b = tile_a + TileA::kSize;
      __syncwarp();  // the products below are the whole warp's; the loads above are not
#pragma unroll
      for (int k = 0; k < kDepth; k += kStep) results.template add<S, TileA, TileB>(tile_a, tile_b, k);
      if (more) {  // the other stage: all have left it
        S* next = shared + (stage ^ 1) * (TileA::kSize + TileB::kSize);
        a.store(g.a, next, vectors);
        b.store(g.b, next + TileA::kSize, vectors);
      }
      __syncthreads();
    }

    const int64_t left = g.rows - row0;
    const int rows = left < BM ? static_cast<int>(left) : BM;
    const int cols = g.cols - col0 < BN ? g.cols - col0 : BN;
    const Line line{first_row + row0, rows};
    Pair* part = reinterpret_cast<Pair*>(shared);
    const int c = threadIdx.x;
    if constexpr (P == Product::kForward) {
      using Passing = typename Form::Results::template Passing<S, V>;
      Passing passing;
      if (V > 1 && READY && g.join.left) passing.fetch(results, g.join, line, col0, cols);
      if (TileB::kFolds && g.b.scale) {
        float* constants = reinterpret_cast<float*>(part + Form::kWarpsDown * BN);
        b.leave_constants(constants);
        __syncthreads();
        results.add_bias(constants, cols);
      }
      if (g.bias) results.add_bias(g.bias + col0, cols);
      if (g.mean) results.leave_moments(rows, part, BN);
      if (g.out_relu) results.relu();
      if (READY && g.join.first) return results.template join<S, V>(g.join, passing, line, col0, cols);
      results.template store<S, V>(g.out + col0, g.ld_out, line, cols);
      if (!g.mean) return;
      __syncthreads();
      const int64_t row_tiles = gridDim.x / col_tiles, batch = blockIdx.y;
      const int64_t partial = batch * 2 * row_tiles * g.channels;
      if (c < cols) {
        Moments m{0.f, 0.f, 0.f};
        for (int i = 0; i < Form::kWarpsDown; ++i) {
          const Pair& of = part[i * BN + c];
          m.merge(Form::Results::rows_of(i, rows), of.lane[0], of.lane[1]);
        }
        const int64_t at = partial + row_tile * g.channels + col0 + c;
        g.mean[at] = m.mean;
        g.m2[at] = m.m2;
      }
      unsigned* ticket = g.tickets + batch * col_tiles + blockIdx.x % col_tiles;
      if (!last_block(ticket, static_cast<unsigned>(row_tiles))) return;
      const auto count = [&](int64_t tile) {
        const int64_t rest = g.rows - tile * BM;
        return static_cast<float>(rest < BM ? rest : BM);
      };
      for (int c0 = col0; c0 < col0 + cols; c0 += kLanes)
        merge_rows({g.mean + partial, g.m2 + partial, g.channels, row_tiles}, count, c0, col0 + cols,
                   reinterpret_cast<double*>(shared), skip(g.stats, batch * g.channels));
    } else if constexpr (P == Product::kGradX) {
      if (g.x.data) results.template through_pending<S, V>(g.x, row0, col0, rows, cols, part, BN);
      results.template store<S, V>(g.out + col0, g.ld_out, line, cols);
      if (!g.sums) return;
      __syncthreads();
      if (c >= cols) return;
      float* at = g.sums + row_tile * 2 * g.channels + col0 + c;
      Pair sum = part[c];
      for (int i = 1; i < Form::kWarpsDown; ++i)
        for (int k = 0; k < 2; ++k) sum.lane[k] += part[i * BN + c].lane[k];
      at[0] = sum.lane[0];
      at[g.channels] = sum.lane[1];
    } else {
      float* to = g.partial + blockIdx.z * g.rows * g.cols + col0;
      results.template store<float, V == 1 ? 1 : 4>(to, g.cols, line, cols);
    }
  } else {
    trap();  // the entry points do not come here
  }
}

// Columns of a block's results where there are many: of 128 and 160 those that leave the fewest unused,
// 160 if they are as many.
inline int gemm_cols(int64_t cols) {
  if (cols <= 64) return 64;
  return ceil_div(cols, 128) * 128 < ceil_div(cols, 160) * 160 ? 128 : 160;
}
// Rows of a block's results: fewer where blocks would not fill a GPU. Follows from the shape and the GPU.
inline int gemm_rows(int64_t rows, int64_t cols) {
  return ceil_div(rows, 128) * ceil_div(cols, 64) >= fill(2) ? 128 : 64;
}
inline int64_t gemm_row_tiles(int64_t rows, int64_t cols) { return ceil_div(rows, gemm_rows(rows, cols)); }
// Tiles of columns, at most.
inline int64_t gemm_col_tiles(int64_t cols) { return ceil_div(cols, 64); }

// Parts that the pixels of a weight gradient are cut into.
inline int64_t gemm_splits(int64_t rows, int64_t cols, int64_t pixels) {
  const int64_t tiles = ceil_div(rows, 64) * ceil_div(cols, 64);
  const int64_t wanted = ceil_div(fill(4), tiles), useful = ceil_div(pixels, 256);
  return wanted < useful ? wanted : (useful > 0 ? useful : 1);
}

template <typename S, int V, Product P, bool READY, int BM, int BN>
void launch_gemm_form(const Gemm<S>& g, int64_t splits, int64_t batches, Stream stream) {
  using Form = Shape<S, V, P, READY, BM, BN>;
  auto kernel = &gemm_kernel<S, V, P, READY, BM, BN>;
  static_assert(Form::kShared <= 48 * 1024, "more shared memory than is free to take");
  DETNAS_LAUNCH(kernel, dim3(ceil_div(g.rows, BM) * ceil_div(g.cols, BN), batches, splits), dim3(Form::kThreads),
                Form::kShared, stream, g);
}

template <typename S, int V, Product P, bool READY>
void launch_gemm_form(const Gemm<S>& g, int64_t splits, int64_t batches, Stream stream) {
  if constexpr (P == Product::kGradWeight) {
    launch_gemm_form<S, V, P, READY, 64, 64>(g, splits, batches, stream);
  } else {
    const int cols = V > 1 ? gemm_cols(g.cols) : 64;
    if (gemm_rows(g.rows, g.cols) == 64) {
      launch_gemm_form<S, V, P, READY, 64, 64>(g, splits, batches, stream);
    } else if (cols == 64 || ceil_div(g.rows, 128) * ceil_div(g.cols, cols) < fill(1)) {
      launch_gemm_form<S, V, P, READY, 128, 64>(g, splits, batches, stream);
    } else if constexpr (V > 1) {
      if (cols == 128) launch_gemm_form<S, V, P, READY, 128, 128>(g, splits, batches, stream);
      else launch_gemm_form<S, V, P, READY, 128, 160>(g, splits, batches, stream);
    }
  }
}

// rows, cols, depth > 0, of a batch. Reads 16 bytes at a time where everything allows it.
template <Product P, typename S>
void launch_gemm(Gemm<S> g, int64_t splits, Stream stream, int64_t batches = 1) {
  constexpr int V = 16 / sizeof(S);
  constexpr bool kForward = P == Product::kForward, kWeight = P == Product::kGradWeight;
  g.depth_per_split = ceil_div(g.depth, splits);
  if (kForward && g.a.scale && !g.a.relu) {
    std::swap(g.a.scale, g.b.scale);
    std::swap(g.a.shift, g.b.shift);
  }
  const int64_t a_minor = kWeight ? g.rows : g.depth, b_minor = kForward ? g.depth : g.cols;
  const bool wide = vectorizable(g.a, a_minor) && vectorizable(g.b, b_minor) &&
                    (kWeight || (g.join.first ? g.join.wide(g.cols) : vectorizable<S>(g.out, g.ld_out, g.cols))) &&
                    (!g.x.data || vectorizable<S>(g.x.data, g.x.ld, g.cols));
  const auto launch = [&](auto ready) {
    constexpr bool kReady = decltype(ready)::value;
    if (wide) launch_gemm_form<S, V, P, kReady>(g, splits, batches, stream);
    else launch_gemm_form<S, 1, P, kReady>(g, splits, batches, stream);
  };
  if constexpr (kForward) {
    if (g.a.relu) launch(std::false_type());
    else launch(std::true_type());
  } else {
    launch(std::true_type());
  }
}

}  // namespace cuda
}  // namespace detnas
