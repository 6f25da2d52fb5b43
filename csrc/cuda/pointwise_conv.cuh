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
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "bn_stats.cuh"

namespace detnas {
namespace cuda {

enum class Product { kForward, kGradX, kGradWeight };

constexpr int kGemmThreads = 256, kGemmCols = 64;

// Before compute capability 8.0 tensor cores know float16 only, and their headers no other type.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kOnlyHalf = true;
using Tf32 = float;
__device__ inline float to_tf32(float v) { return v; }
#else
constexpr bool kOnlyHalf = false;
using Tf32 = nvcuda::wmma::precision::tf32;
__device__ inline float to_tf32(float v) { return nvcuda::wmma::__float_to_tf32(v); }
#endif

// How a dtype meets the tensor cores: the element type of tiles, of fragments, and their depth.
template <typename S>
struct TensorCore;
template <>
struct TensorCore<c10::Half> {
  using Element = __half;
  using Fragment = __half;
  static constexpr int kDepth = 16;
};
template <>
struct TensorCore<c10::BFloat16> {
  using Element = __nv_bfloat16;
  using Fragment = __nv_bfloat16;
  static constexpr int kDepth = 16;
};
template <>
struct TensorCore<float> {  // products of 10 bits of mantissa: only where the user allows TF32
  using Element = float;
  using Fragment = Tf32;
  static constexpr int kDepth = 8;
};

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
  static constexpr int kLd = kMinor + 16 / sizeof(S);  // rows start in different banks
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
  static __device__ int offset(int row, int depth) {
    return DEPTH_MINOR ? row * kLd + depth : depth * kLd + row;
  }
};

template <typename S, int V, Product P, int BM>
struct Shape {
  static constexpr int kDepth = 64 / sizeof(S);  // 64 bytes of depth at a time
  using A = Tile<S, V, P != Product::kGradWeight, BM, kDepth>;
  using B = Tile<S, V, P == Product::kForward, kGemmCols, kDepth>;
  static constexpr int kLdOut = kGemmCols + 4, kParts = kGemmThreads / kGemmCols;
  static constexpr int64_t kTiles = 2 * (A::kSize + B::kSize) * sizeof(S);
  static constexpr int64_t kOut = BM * kLdOut * sizeof(float);
  static constexpr int64_t kShared = (kTiles > kOut ? kTiles : kOut) + kGemmThreads * sizeof(Moments);
  static_assert(kOut >= 4 * kGemmThreads * static_cast<int64_t>(sizeof(double)), "merge_rows' memory");
};

// Column `col` of rows begin..end of the block's results: adds the bias, leaves partial moments.
template <typename S>
__device__ Moments finish_forward(const Gemm<S>& g, float* out, int ld, int begin, int end, int col) {
  const float bias = g.bias ? g.bias[col] : 0.f;
  float ref = 0.f, sum = 0.f, sq = 0.f;
  for (int r = begin; r < end; ++r) {
    float v = out[r * ld] + bias;
    if (r == begin) ref = v - v == 0.f ? v : 0.f;
    sum += v - ref;
    sq += (v - ref) * (v - ref);
    if (g.out_relu) v = v < 0.f ? 0.f : v;
    out[r * ld] = v;
  }
  const float n = static_cast<float>(end > begin ? end - begin : 0), m = n > 0.f ? sum / n : 0.f;
  const float s = sq - sum * m;
  return {n, ref + m, s < 0.f ? 0.f : s};
}

// The same for grad_x: sends the gradient through the pending map, leaves {0, sum g * x, sum g}.
template <typename S>
__device__ Moments finish_grad_x(const Gemm<S>& g, float* out, int ld, int begin, int end, int64_t row0,
                                 int col) {
  const float scale = g.x.scale ? g.x.scale[col] : 1.f, shift = g.x.scale ? g.x.shift[col] : 0.f;
  Moments sums{0.f, 0.f, 0.f};
  for (int r = begin; r < end; ++r) {
    const float x = static_cast<float>(g.x.data[(row0 + r) * g.x.ld + col]);
    float v = out[r * ld];
    if (g.x.relu && x * scale + shift <= 0.f) v = 0.f;
    sums.mean += v * x;
    sums.m2 += v;
    out[r * ld] = v * scale;
  }
  return sums;
}

template <typename S, int V, Product P, int BM>
__global__ void __launch_bounds__(kGemmThreads) gemm_kernel(Gemm<S> g) {
  if constexpr (!kOnlyHalf || std::is_same<S, c10::Half>::value) {
    namespace wmma = nvcuda::wmma;
    using Form = Shape<S, V, P, BM>;
    using TileA = typename Form::A;
    using TileB = typename Form::B;
    using Core = TensorCore<S>;
    using Element = typename Core::Element;
    using LayoutA = typename std::conditional<P != Product::kGradWeight, wmma::row_major, wmma::col_major>::type;
    using LayoutB = typename std::conditional<P == Product::kForward, wmma::col_major, wmma::row_major>::type;
    constexpr int kDepth = Form::kDepth, kStep = Core::kDepth;
    constexpr int kDown = BM / 4 / 16, kAside = kGemmCols / 2 / 16;  // fragments of a warp: 4 x 2 warps
    DETNAS_SHARED(S, shared);
    const int col_tiles = (g.cols + kGemmCols - 1) / kGemmCols;
    const int64_t row_tile = blockIdx.x / col_tiles, row0 = row_tile * BM;
    const int col0 = static_cast<int>(blockIdx.x % col_tiles) * kGemmCols;
    // Of the batch: pixels and vectors of those before it.
    const int64_t first_row = P == Product::kForward ? blockIdx.y * g.rows : 0;
    const int vectors = P == Product::kForward ? static_cast<int>(blockIdx.y) * g.in_channels : 0;
    const int64_t begin = blockIdx.z * g.depth_per_split;
    const int64_t end = begin + g.depth_per_split < g.depth ? begin + g.depth_per_split : g.depth;
    const int warp = threadIdx.x / 32, down = warp / 2 * (BM / 4), aside = warp % 2 * (kGemmCols / 2);

    wmma::fragment<wmma::accumulator, 16, 16, kStep, float> sums[kDown][kAside];
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAside; ++j) wmma::fill_fragment(sums[i][j], 0.f);
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
      for (int k = 0; k < kDepth; k += kStep) {
        wmma::fragment<wmma::matrix_a, 16, 16, kStep, typename Core::Fragment, LayoutA> fa[kDown];
        wmma::fragment<wmma::matrix_b, 16, 16, kStep, typename Core::Fragment, LayoutB> fb[kAside];
#pragma unroll
        for (int i = 0; i < kDown; ++i)
          wmma::load_matrix_sync(
              fa[i], reinterpret_cast<const Element*>(tile_a + TileA::offset(down + i * 16, k)), TileA::kLd);
#pragma unroll
        for (int j = 0; j < kAside; ++j)
          wmma::load_matrix_sync(
              fb[j], reinterpret_cast<const Element*>(tile_b + TileB::offset(aside + j * 16, k)), TileB::kLd);
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
          for (int j = 0; j < kAside; ++j) wmma::mma_sync(sums[i][j], fa[i], fb[j], sums[i][j]);
      }
      if (more) {  // the other stage: all have left it
        S* next = shared + (stage ^ 1) * (TileA::kSize + TileB::kSize);
        a.store(g.a, next, vectors);
        b.store(g.b, next + TileA::kSize);
      }
      __syncthreads();
    }

    // The results take the place of the tiles.
    float* out = reinterpret_cast<float*>(shared);
    constexpr int ld = Form::kLdOut;
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAside; ++j)
        wmma::store_matrix_sync(out + (down + i * 16) * ld + aside + j * 16, sums[i][j], ld,
                                wmma::mem_row_major);
    __syncthreads();
    const int64_t left = g.rows - row0;
    const int rows = left < BM ? static_cast<int>(left) : BM;
    const int cols = g.cols - col0 < kGemmCols ? g.cols - col0 : kGemmCols;
    if constexpr (P == Product::kGradWeight) {
      float* to = g.partial + (blockIdx.z * g.rows + row0) * g.cols + col0;
      for (int i = threadIdx.x; i < BM * kGemmCols; i += kGemmThreads) {
        const int r = i / kGemmCols, c = i % kGemmCols;
        if (r < rows && c < cols) to[static_cast<int64_t>(r) * g.cols + c] = out[r * ld + c];
      }
      return;
    }
    // A thread finishes a quarter of a column.
    Moments* part = reinterpret_cast<Moments*>(reinterpret_cast<unsigned char*>(shared) + Form::kShared) -
                    kGemmThreads;
    const int c = threadIdx.x % kGemmCols, first = threadIdx.x / kGemmCols * (BM / Form::kParts);
    const int last = first + BM / Form::kParts < rows ? first + BM / Form::kParts : rows;
    if (c < cols) {
      if (P == Product::kForward)
        part[threadIdx.x] = finish_forward(g, out + c, ld, first, last, col0 + c);
      else if (g.x.data)
        part[threadIdx.x] = finish_grad_x(g, out + c, ld, first, last, row0, col0 + c);
    }
    __syncthreads();
    constexpr int kWide = V;
    for (int i = threadIdx.x; i < BM * kGemmCols / kWide; i += kGemmThreads) {
      const int r = i / (kGemmCols / kWide), k = i % (kGemmCols / kWide) * kWide;
      if (r >= rows || k >= cols) continue;
      Pack<S, kWide> pack;
#pragma unroll
      for (int l = 0; l < kWide; ++l) pack.lane[l] = static_cast<S>(out[r * ld + k + l]);
      *reinterpret_cast<Pack<S, kWide>*>(g.out + (first_row + row0 + r) * g.ld_out + col0 + k) = pack;
    }
    if constexpr (P == Product::kForward) {
      if (!g.mean) return;
      const int64_t row_tiles = gridDim.x / col_tiles, batch = blockIdx.y;
      const int64_t partial = batch * 2 * row_tiles * g.channels;
      if (threadIdx.x < cols) {
        Moments m = part[threadIdx.x];
        for (int i = 1; i < Form::kParts; ++i) {
          const Moments other = part[threadIdx.x + i * kGemmCols];
          m.merge(other.n, other.mean, other.m2);
        }
        const int64_t at = partial + row_tile * g.channels + col0 + threadIdx.x;
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
    } else {
      if (threadIdx.x >= cols || !g.sums) return;
      Moments m = part[threadIdx.x];
      for (int i = 1; i < Form::kParts; ++i) {
        m.mean += part[threadIdx.x + i * kGemmCols].mean;
        m.m2 += part[threadIdx.x + i * kGemmCols].m2;
      }
      float* at = g.sums + row_tile * 2 * g.channels + col0 + threadIdx.x;
      at[0] = m.mean;
      at[g.channels] = m.m2;
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
                    (kWeight || vectorizable<S>(g.out, g.ld_out, g.cols));
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
