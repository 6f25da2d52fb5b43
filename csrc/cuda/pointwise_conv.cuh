// Matrix products on tensor cores for 1x1 convolutions: what is pending on an operand is applied
// while its tile is copied to shared memory; bias, ReLU, statistics or the gradient of a pending map
// while the result leaves it.
//
// Terminology: out[rows][cols] = sum over depth of a * b. Every operand is a matrix
// [major][minor], minor contiguous, channels along minor:
//   forward      rows pixels, cols out channels, depth in channels:  a = x,    b = weight
//   grad_x       rows pixels, cols in channels,  depth out channels: a = grad, b = weight
//   grad_weight  rows out channels, cols in channels, depth pixels:  a = grad, b = x
// A block makes BM x 64 results; x is read once for every 64 columns, the repetitions from L2.
#pragma once
#include "bn_stats.cuh"
#include "product_results.cuh"

namespace detnas {
namespace cuda {

enum class Product { kForward, kGradX, kGradWeight };

constexpr int kGemmCols = 64;   // results of a block along columns
constexpr int kGemmBlocks = 2;  // of a multiprocessor, at least: 128 registers a thread

template <typename S>
__device__ inline S to_element(float v) {
  if constexpr (std::is_same<S, float>::value) return to_tf32(v);
  else return static_cast<S>(v);
}

template <typename S>
struct Gemm {
  Source<S> a, b;
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
  int in_channels;  // of what is pending on a: those of all groups
  // grad_x: the map pending on x; partial sums [row tiles][2][channels] of grad * x and grad, or null
  Source<S> x;
  float* sums;
  int64_t channels;  // of a partial row: those of all groups
  // grad_weight: [splits][rows][cols]
  float* partial;
};

// A tile of ROWS x DEPTH of an operand on its way through registers into shared memory.
template <typename S, int V, bool DEPTH_MINOR, int ROWS, int DEPTH>
struct Tile {
  static constexpr int kMinor = DEPTH_MINOR ? DEPTH : ROWS, kMajor = DEPTH_MINOR ? ROWS : DEPTH;
  // Rows start in different banks, as load_fragments wants them.
  static constexpr int kLd = kMinor + (DEPTH_MINOR || sizeof(S) == 2 ? 16 / static_cast<int>(sizeof(S)) : 8);
  static constexpr int kSize = kMajor * kLd;
  static constexpr int kAcross = kMinor / V, kVectors = kMajor * kAcross;
  static constexpr int kPer = (kVectors + kGemmThreads - 1) / kGemmThreads;

  typename Source<S>::template Raw<V> raw[kPer];
  int64_t major0, majors, minor0, minors;

  __device__ void place(int64_t row0, int64_t rows, int64_t depth0, int64_t depth_end) {
    major0 = DEPTH_MINOR ? row0 : depth0;
    majors = DEPTH_MINOR ? rows : depth_end;
    minor0 = DEPTH_MINOR ? depth0 : row0;
    minors = DEPTH_MINOR ? depth_end : rows;
  }
  // Vector i of this thread, and whether it lies inside the matrix.
  __device__ bool at(int i, int& major, int& minor) const {
    const int v = static_cast<int>(threadIdx.x) + i * kGemmThreads;
    major = v / kAcross;
    minor = v % kAcross * V;
    return v < kVectors && major0 + major < majors && minor0 + minor < minors;
  }
  __device__ void fetch(const Source<S>& m) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      int major, minor;
      if (at(i, major, minor)) raw[i] = m.template fetch<V>(major0 + major, static_cast<int>(minor0) + minor);
    }
  }
  // vectors: what is pending begins so many channels on.
  __device__ void store(const Source<S>& m, S* shared, int vectors = 0) const {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      int major, minor;
      float v[V];
#pragma unroll
      for (int k = 0; k < V; ++k) v[k] = 0.f;
      if (at(i, major, minor)) m.template apply<V>(raw[i], vectors + static_cast<int>(minor0) + minor, v);
      if (static_cast<int>(threadIdx.x) + i * kGemmThreads >= kVectors) continue;
      Pack<S, V> pack;
#pragma unroll
      for (int k = 0; k < V; ++k) pack.lane[k] = to_element<S>(v[k]);
      *reinterpret_cast<Pack<S, V>*>(shared + major * kLd + minor) = pack;
    }
  }
  static __device__ void fragments(uint32_t (&to)[4], const S* shared, int row, int depth) {
    load_fragments<S, DEPTH_MINOR, kLd>(to, shared, row, depth);
  }
};

template <typename S, int V, Product P, int BM>
struct Shape {
  static constexpr int kDepth = 64 / sizeof(S);  // 64 bytes of depth at a time
  using A = Tile<S, V, P != Product::kGradWeight, BM, kDepth>;
  using B = Tile<S, V, P == Product::kForward, kGemmCols, kDepth>;
  using Results = cuda::Results<BM / kWarpsDown / 16, kGemmCols / kWarpsAside / 8>;
  static constexpr int64_t kShared = 2 * (A::kSize + B::kSize) * sizeof(S);
  static_assert(kShared >= kWarpsDown * kGemmCols * static_cast<int64_t>(sizeof(Pair)), "column sums' memory");
  static_assert(kShared >= 4 * kGemmThreads * static_cast<int64_t>(sizeof(double)), "merge_rows' memory");
};

template <typename S, int V, Product P, int BM>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks) gemm_kernel(Gemm<S> g) {
  if constexpr (multiplies<S>()) {
    using Form = Shape<S, V, P, BM>;
    using TileA = typename Form::A;
    using TileB = typename Form::B;
    constexpr int kDepth = Form::kDepth, kStep = kProductDepth<S>;
    DETNAS_SHARED(S, shared);
    const int col_tiles = (g.cols + kGemmCols - 1) / kGemmCols;
    const int64_t row_tile = blockIdx.x / col_tiles, row0 = row_tile * BM;
    const int col0 = static_cast<int>(blockIdx.x % col_tiles) * kGemmCols;
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
    b.store(g.b, shared + TileA::kSize);
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
        b.store(g.b, next + TileA::kSize);
      }
      __syncthreads();
    }

    const int64_t left = g.rows - row0;
    const int rows = left < BM ? static_cast<int>(left) : BM;
    const int cols = g.cols - col0 < kGemmCols ? g.cols - col0 : kGemmCols;
    Pair* part = reinterpret_cast<Pair*>(shared);  // [kWarpsDown][kGemmCols], in the place of the tiles
    const int c = threadIdx.x;
    if constexpr (P == Product::kForward) {
      if (g.bias) results.add_bias(g.bias + col0, cols);
      if (g.mean) results.leave_moments(rows, part, kGemmCols);
      if (g.out_relu) results.relu();
      results.template store<S, V>(g.out + (first_row + row0) * g.ld_out + col0, g.ld_out, rows, cols);
      if (!g.mean) return;
      __syncthreads();
      const int64_t row_tiles = gridDim.x / col_tiles, batch = blockIdx.y;
      const int64_t partial = batch * 2 * row_tiles * g.channels;
      if (c < cols) {
        Moments m{0.f, 0.f, 0.f};
        for (int i = 0; i < kWarpsDown; ++i) {
          const Pair& of = part[i * kGemmCols + c];
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
      if (g.x.data) results.template through_pending<S, V>(g.x, row0, col0, rows, cols, part, kGemmCols);
      results.template store<S, V>(g.out + row0 * g.ld_out + col0, g.ld_out, rows, cols);
      if (!g.sums) return;
      __syncthreads();
      if (c >= cols) return;
      float* at = g.sums + row_tile * 2 * g.channels + col0 + c;
      Pair sum = part[c];
      for (int i = 1; i < kWarpsDown; ++i)
        for (int k = 0; k < 2; ++k) sum.lane[k] += part[i * kGemmCols + c].lane[k];
      at[0] = sum.lane[0];
      at[g.channels] = sum.lane[1];
    } else {
      float* to = g.partial + (blockIdx.z * g.rows + row0) * g.cols + col0;
      results.template store<float, V == 1 ? 1 : 4>(to, g.cols, rows, cols);
    }
  } else {
    trap();  // the entry points do not come here
  }
}

// Rows of a block's results: fewer where blocks would not fill a GPU. Follows from the shape alone.
inline int gemm_rows(int64_t rows, int64_t cols) {
  return ceil_div(rows, 128) * ceil_div(cols, kGemmCols) >= kFill ? 128 : 64;
}
inline int64_t gemm_row_tiles(int64_t rows, int64_t cols) { return ceil_div(rows, gemm_rows(rows, cols)); }

// Parts that the pixels of a weight gradient are cut into.
inline int64_t gemm_splits(int64_t rows, int64_t cols, int64_t pixels) {
  const int64_t tiles = ceil_div(rows, 64) * ceil_div(cols, kGemmCols);
  const int64_t wanted = ceil_div(512, tiles), useful = ceil_div(pixels, 256);
  return wanted < useful ? wanted : (useful > 0 ? useful : 1);
}

template <typename S, int V, Product P, int BM>
void launch_gemm_form(const Gemm<S>& g, int64_t splits, int64_t batches, Stream stream) {
  auto kernel = &gemm_kernel<S, V, P, BM>;
  static_assert(Shape<S, V, P, BM>::kShared <= 48 * 1024, "more shared memory than is free to take");
  DETNAS_LAUNCH(kernel, dim3(ceil_div(g.rows, BM) * ceil_div(g.cols, kGemmCols), batches, splits),
                dim3(kGemmThreads), (Shape<S, V, P, BM>::kShared), stream, g);
}

// rows, cols, depth > 0, of a batch. Reads 16 bytes at a time where everything allows it.
template <Product P, typename S>
void launch_gemm(Gemm<S> g, int64_t splits, Stream stream, int64_t batches = 1) {
  constexpr int V = 16 / sizeof(S);
  constexpr bool kForward = P == Product::kForward, kWeight = P == Product::kGradWeight;
  g.depth_per_split = ceil_div(g.depth, splits);
  const int64_t a_minor = kWeight ? g.rows : g.depth, b_minor = kForward ? g.depth : g.cols;
  const bool wide = vectorizable(g.a, a_minor) && vectorizable(g.b, b_minor) &&
                    (kWeight || vectorizable<S>(g.out, g.ld_out, g.cols)) &&
                    (!g.x.data || vectorizable<S>(g.x.data, g.x.ld, g.cols));
  if (kWeight || gemm_rows(g.rows, g.cols) == 64) {
    if (wide) launch_gemm_form<S, V, P, 64>(g, splits, batches, stream);
    else launch_gemm_form<S, 1, P, 64>(g, splits, batches, stream);
  } else if constexpr (!kWeight) {
    if (wide) launch_gemm_form<S, V, P, 128>(g, splits, batches, stream);
    else launch_gemm_form<S, 1, P, 128>(g, splits, batches, stream);
  }
}

}  // namespace cuda
}  // namespace detnas
