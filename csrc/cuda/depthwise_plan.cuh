// How depthwise convolutions are cut into tiles; their launches.
//
// A convolution with dilation d and stride s is a set of dense ones, of dilation 1 and stride 1 or 2,
// each from one lattice of every d-th pixel to another: with g = gcd(s, d), outputs o = (d / g) i + p
// read inputs d (s / g i + k - k / 2) + s p, for phases p < d / g, in both directions. So kernels
// know dense taps only, at addresses known when compiled, and dilation costs no larger halo. Pixels
// lie whole in channels_last memory, so reading every d-th one wastes no bandwidth. Gradients of the
// input gather from the output with both sides swapped and the taps flipped.
#pragma once
#include "stats_out.cuh"

#if defined(DETNAS_EMULATE) && !defined(__grid_constant__)
#define __grid_constant__
#endif

namespace detnas {
namespace cuda {

// Makes the compiler believe that x changes here, so that it computes what follows from it where it is
// used, and does not hold it in registers across the loop over tiles.
__device__ inline void opaque(int& x) {
#ifndef DETNAS_EMULATE
  asm volatile("" : "+r"(x));
#endif
}

constexpr int kNowhere = 1 << 29;  // an offset outside of every map
constexpr int64_t kDepthwiseBlocks = 2;  // of a multiprocessor

enum TileMode { kLarge, kSmall, kStrided };

// One convolution, or its gradient, of a launch: from the gathered map `in` to the made one `out`.
template <typename S>
struct Depthwise {
  Source<S> in;
  Source<S> other;  // for grad_input x, pending on which is what the gradient goes back through; for
                    // grad_weight the gradient of the output
  const S* weight;               // (C, 1, k, k), as it is
  const float* bias;
  S* out;
  float* partial;  // a row of partial results for each block of a slab, or null
  unsigned* tickets;  // of forward statistics, one for each slab
  StatsOut stats;
  int channels, kernel, in_height, in_width, out_height, out_width;
  int phases, in_step, in_offset, out_step, out_offset, origin;
  int tiles_y, tiles_x, tiles, slabs, rows;  // each slab of channels of a batch has `rows` blocks
  int images;  // of a batch
  TileMode mode;
  bool out_relu, vector;
};

// What a launch computes: several convolutions, of other channels, kernels, sizes as they may be.
template <typename S>
struct DepthwiseBatch {
  int count = 0;
  Depthwise<S> entry[kMaxMixed]{};  // null pointers where nothing is set
};

// Length of what `made` outputs in a row gather from.
constexpr int extent(int made, int kernel, int down, int up) {
  return (down * (made - 1) + kernel / 2) / up + kernel / 2 / up + 1;
}

// A thread makes R x Q outputs of one channel, or of two (kEach); 4 x 2 of them for each of 32 channels
// make a tile. A tile holds floats, to which what is pending is applied once for each value, not once for
// each tap, and accesses of a warp are 32 neighbouring words; or 16-bit values as they lie in memory
// (depthwise_pairs.cuh), a tile and the next. The largest, k 7, are 39 KB and 2 x 21 KB (and 6 KB or 3 KB
// of weights): all stay below 48 KB. Values read for each one made, halo included (from L2 for the most part):
//   k             3     5     7
//   8 x 16       1.4   1.9   2.4   stride 1
//   4 x 8        1.9   3.0   4.4   stride 1, small maps
//   4 x 8        4.8   6.5   8.5   stride 2 (4 were read without halo)
//   8 x 16       .35   .47   .60   grad_input of stride 2 (.25)
template <int K_, int Down_, int Up_, int R_, int Q_>
struct Tile {
  static constexpr int K = K_, Down = Down_, Up = Up_, R = R_, Q = Q_, taps = K * K;
  static constexpr int rows = 4 * R, cols = 2 * Q;
  static constexpr int halo = K / 2 / Up;
  static constexpr int window_rows = extent(R, K, Down, Up), window_cols = extent(Q, K, Down, Up);
  static constexpr int in_rows = extent(rows, K, Down, Up), in_cols = extent(cols, K, Down, Up);
  static constexpr int pixels = in_rows * in_cols, floats = pixels * kLanes;
};
template <int K>
using LargeTile = Tile<K, 1, 1, 2, 8>;
template <int K>
using SmallTile = Tile<K, 1, 1, 1, 4>;
template <int K>
using DownTile = Tile<K, 2, 1, 1, 4>;
template <int K>
using UpTile = Tile<K, 1, 2, 2, 8>;

static_assert(LargeTile<7>::floats + 49 * kLanes <= 12288 && DownTile<7>::floats + 49 * kLanes <= 12288,
              "more shared memory than a launch may ask for without an attribute");

static_assert((SmallTile<3>::floats + 9 * kLanes) * sizeof(float) >= 4 * kLanes * kRows * sizeof(double),
              "a tile is too small for merge_rows");

// Channels of a thread. Two where it reads 16-bit values as they lie in memory. Gradients of maps are made of
// two maps each, and those of weights have sums for every tap: one channel.
template <typename S, bool Grad>
constexpr int kEach = !Grad && sizeof(S) == 2 ? 2 : 1;

// Fills in how the outputs of a batch are cut. Set before: in, other, channels, kernel; sizes are x's. At most
// `blocks` blocks in all, each for several tiles of a map that has more. Tiles are small where there
// would be too few large ones to fill the GPU.
template <typename S>
void plan(Depthwise<S>& a, int64_t images, int64_t height, int64_t width, int stride, int dilation,
          bool gradient, int64_t blocks) {
  const int64_t oh = (height - 1) / stride + 1, ow = (width - 1) / stride + 1;
  const int common = stride == 2 && dilation == 2 ? 2 : 1, step = dilation / common;
  const bool strided = stride / common == 2;
  a.in_height = static_cast<int>(gradient ? oh : height);
  a.in_width = static_cast<int>(gradient ? ow : width);
  a.out_height = static_cast<int>(gradient ? height : oh);
  a.out_width = static_cast<int>(gradient ? width : ow);
  a.phases = step;
  a.origin = 0;
  if (!gradient) {
    a.in_step = dilation, a.in_offset = stride, a.out_step = step, a.out_offset = 1;
  } else if (common == 1) {
    a.in_step = step, a.in_offset = 1, a.out_step = dilation, a.out_offset = stride;
    if (strided && dilation == 3) a.origin = -2;  // a phase starts at pixel 4; pixel 1 is its -1st
  } else {  // odd pixels, the second phase, have no taps
    a.phases = 2, a.in_step = 1, a.in_offset = kNowhere, a.out_step = 2, a.out_offset = 1;
  }
  a.images = static_cast<int>(images);
  a.slabs = static_cast<int>(ceil_div(a.channels, kLanes));
  const int64_t rows = ceil_div(a.out_height, a.out_step) - a.origin;
  const int64_t cols = ceil_div(a.out_width, a.out_step) - a.origin;
  const int64_t maps = images * a.phases * a.phases;
  const bool large =
      strided ? gradient : maps * ceil_div(rows, 8) * ceil_div(cols, 16) * a.slabs >= fill(kDepthwiseBlocks);
  a.mode = strided ? kStrided : large ? kLarge : kSmall;
  a.tiles_y = static_cast<int>(ceil_div(rows, large ? 8 : 4));
  a.tiles_x = static_cast<int>(ceil_div(cols, large ? 16 : 8));
  a.tiles = static_cast<int>(maps * a.tiles_y * a.tiles_x);
  const int64_t most = ceil_div(blocks, a.slabs);
  a.rows = static_cast<int>(a.tiles < most ? a.tiles : most);
  a.vector = vectorizable(a.in, a.channels);
}

// Calls run(tile type) for an entry; blocks agree on the branch. K 0: any kernel size.
template <int K, bool Grad, typename S, typename F>
__device__ void by_tile(const Depthwise<S>& a, const F& run) {
  if constexpr (K == 0) {
    if (a.kernel == 3) by_tile<3, Grad>(a, run);
    else if (a.kernel == 5) by_tile<5, Grad>(a, run);
    else by_tile<7, Grad>(a, run);
  } else if (a.mode == kLarge) {
    run(LargeTile<K>());
  } else if (a.mode == kSmall) {
    run(SmallTile<K>());
  } else if constexpr (Grad) {
    run(UpTile<K>());
  } else {
    run(DownTile<K>());
  }
}

// size(tile type) of an entry's tile, on the host.
template <typename S, typename F>
int64_t of_tile(const Depthwise<S>& a, bool gradient, const F& size) {
  const auto of = [&](auto kernel) -> int64_t {
    constexpr int K = decltype(kernel)::K;
    if (a.mode == kLarge) return size(LargeTile<K>());
    if (a.mode == kSmall) return size(SmallTile<K>());
    return gradient ? size(UpTile<K>()) : size(DownTile<K>());
  };
  if (a.kernel == 3) return of(LargeTile<3>());
  if (a.kernel == 5) return of(LargeTile<5>());
  return of(LargeTile<7>());
}

// Floats of shared memory of a tile, as the kernels count them.
template <typename S>
int64_t tile_floats(const Depthwise<S>& a, bool gradient) {
  return of_tile(a, gradient, [](auto tile) -> int64_t { return decltype(tile)::floats; });
}

// The entry of a block, and the block's number there.
template <typename S>
__device__ int find_entry(const DepthwiseBatch<S>& batch, int& block) {
  int e = 0;
  while (e + 1 < batch.count && block >= batch.entry[e].slabs * batch.entry[e].rows) {
    block -= batch.entry[e].slabs * batch.entry[e].rows;
    ++e;
  }
  return e;
}

// Floats of a row of partial results: moments, or the gradients of scale and shift.
template <typename S>
__host__ __device__ int64_t row_size(const Depthwise<S>& a, bool gradient) {
  return 2 * static_cast<int64_t>(a.channels) + (gradient ? 0 : a.slabs);
}

// Floats that an entry's partial rows take, those of one batch.
template <typename S>
int64_t partial_size(const Depthwise<S>& a, bool gradient) {
  return a.rows * row_size(a, gradient);
}

// The same of the gradients of weight and bias.
template <typename S>
int64_t partial_weight_size(const Depthwise<S>& a) {
  return static_cast<int64_t>(a.rows) * (a.kernel * a.kernel + 1) * a.channels;
}

// Sums over rows of partial results [rows][sums][channels]: with taps > 0 of gradients of the weight
// and last the bias, else of scale and shift.
template <typename S>
struct SumsBatch {
  int count = 0, block_rows = 8;
  struct Entry {
    const float* partial;
    int rows, channels, taps;
    S* weight;      // or null
    float* vector;  // of the bias or scale, or null
    float* second;  // of shift
    __host__ __device__ int columns() const { return (taps ? taps + 1 : 2) * channels; }
  } entry[2 * kMaxMixed];

  void add(const Entry& e) {
    entry[count++] = e;
    if (e.rows > 64) block_rows = 32;
  }
};

// The launches, of convolutions or their gradients of inputs, of their gradients of weights, and of sums.
// Compiled for each dtype by itself (depthwise_<dtype>.cu).
template <typename S, bool Grad>
void launch_depthwise(const DepthwiseBatch<S>& batch, Stream stream, int64_t batches = 1);
template <typename S>
void launch_depthwise_grad_weight(const DepthwiseBatch<S>& batch, Stream stream);
template <typename S>
void launch_depthwise_sums(const SumsBatch<S>& batch, Stream stream);

}  // namespace cuda
}  // namespace detnas
