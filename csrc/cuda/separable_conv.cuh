// A depthwise convolution and the 1x1 convolution that reads it: a block makes the first operand of its products
// itself, by the sums of depthwise_conv in their order, rounded as the map in between would be, so that the results
// have the bits of two launches. Other blocks' columns need the same operand and make it again.
#pragma once
#include "async_copy.cuh"
#include "depthwise_tile.cuh"
#include "product_results.cuh"
#include "separable_plan.cuh"

namespace detnas {
namespace cuda {

// An operand of products in shared memory, as it is.
template <typename S, int ROWS>
struct Operand {
  static constexpr int kLd = SeparableShared::kRow / static_cast<int>(sizeof(S)), kSize = ROWS * kLd;

  static __device__ void fragments(uint32_t (&to)[4], const S* shared, int row, int depth) {
    load_fragments<S, true, kLd>(to, shared, row, depth);
    if constexpr (std::is_same<S, float>::value) {
#pragma unroll
      for (uint32_t& word : to) {
        float value;
        std::memcpy(&value, &word, sizeof(value));
        value = to_tf32(value);
        std::memcpy(&word, &value, sizeof(value));
      }
    }
  }
};

template <typename S, int K, int STRIDE, int PIXELS, int COLS>
struct SeparableForm {
  static constexpr SeparableShared kShared{K, STRIDE, PIXELS, COLS};
  static constexpr int V = 16 / sizeof(S), kDepth = SeparableShared::kChannels / static_cast<int>(sizeof(S));
  static constexpr int kEach = 4 / static_cast<int>(sizeof(S));  // channels of a thread
  static constexpr int kLanes = kDepth / kEach, kThreads = PIXELS * 4, kBlocks = 512 / kThreads;
  static constexpr int kQ = kTileWidth / 2;  // outputs of a thread, side by side
  static_assert(kThreads / kLanes * kQ == PIXELS, "a thread for all outputs");
  using Taps = Tile<K, STRIDE, 1, 1, kQ>;
  using A = Operand<S, PIXELS>;
  using B = Operand<S, COLS>;
  using Results = cuda::Results<1, COLS / kWarpsAside / 8>;
  static_assert(kThreads / 32 / kWarpsAside * 16 == PIXELS, "a warp has 16 pixels");

  // Elements from the beginning of a patch.
  static __device__ int offset(int row, int col) {
    return (row * kShared.line + col + col / kShared.every) * kDepth;
  }
};

// The outputs of a block: pixels of a tile, row by row.
struct TileRows {
  int64_t image, first;  // its first pixel
  int y, x, rows, cols, width;

  template <typename S>
  __device__ TileRows(const Separable<S>& g, int64_t tile) {
    image = tile / (g.tiles_y * g.tiles_x);
    const int rest = static_cast<int>(tile % (g.tiles_y * g.tiles_x));
    y = rest / g.tiles_x * (g.tile_pixels / kTileWidth);
    x = rest % g.tiles_x * kTileWidth;
    rows = g.out_height - y;
    cols = g.out_width - x;
    width = g.out_width;
    first = (image * g.out_height + y) * width + x;
  }
  __device__ bool has(int row) const { return row / kTileWidth < rows && row % kTileWidth < cols; }
  __device__ int64_t pixel(int row) const { return first + row / kTileWidth * width + row % kTileWidth; }
};

// Starts to copy what a tile sees of the channels from c on; zero outside of the map.
template <class Form, typename S>
__device__ void copy_patch(const Separable<S>& g, const TileRows& at, int c, S* patch) {
  constexpr int kPacks = Form::kDepth / Form::V, kIn = Form::kShared.in_cols;
  const int y0 = at.y * g.stride - g.kernel / 2, x0 = at.x * g.stride - g.kernel / 2;
  const S* from = g.x + at.image * g.height * g.width * g.ld;
  const int lane = static_cast<int>(threadIdx.x) % kPacks * Form::V;
#pragma unroll 1
  for (int p = static_cast<int>(threadIdx.x) / kPacks; p < Form::kShared.in_rows * kIn; p += Form::kThreads / kPacks) {
    const int row = p / kIn, col = p % kIn, y = y0 + row, x = x0 + col;
    const bool inside = y >= 0 && y < g.height && x >= 0 && x < g.width && c + lane < g.channels;
    const int64_t pixel = static_cast<int64_t>(y) * g.width + x;
    copy_async(patch + Form::offset(row, col) + lane, inside ? from + pixel * g.ld + c + lane : g.x, inside);
  }
}

// The same for the weights of COLS columns; zero outside of the matrix.
template <class Form, int COLS, typename S>
__device__ void copy_weights(const Separable<S>& g, int col0, int c, S* to) {
  constexpr int kPacks = Form::kDepth / Form::V;
  const int lane = static_cast<int>(threadIdx.x) % kPacks * Form::V;
#pragma unroll 1
  for (int col = static_cast<int>(threadIdx.x) / kPacks; col < COLS; col += Form::kThreads / kPacks) {
    const bool inside = col0 + col < g.cols && c + lane < g.channels;
    const int64_t at = static_cast<int64_t>(col0 + col) * g.channels + c + lane;
    copy_async(to + col * Form::B::kLd + lane, inside ? g.weight + at : g.weight, inside);
  }
}

// The taps of the channels from c on, through registers into shared memory, one tap after another.
template <class Form, typename S>
struct HeldTaps {
  static constexpr int kTaps = Form::Taps::taps, kPer = (Form::kDepth * kTaps + Form::kThreads - 1) / Form::kThreads;
  static constexpr int kLd = SeparableShared::kTap / static_cast<int>(sizeof(S));
  S held[kPer];

  __device__ void load(const Separable<S>& g, int c) {
    const int left = g.channels - c, size = (left < Form::kDepth ? left : Form::kDepth) * kTaps;
    const S* from = g.taps + static_cast<int64_t>(c) * kTaps;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * Form::kThreads;
      held[i] = at < size ? from[at] : S(0.f);
    }
  }
  __device__ void store(S* shared) const {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * Form::kThreads;
      if (at < Form::kDepth * kTaps) shared[at % kTaps * kLd + at / kTaps] = held[i];
    }
  }
};

// What a thread's outputs gather from, and the taps of its channels.
template <class Form, typename S>
struct PatchWindow {
  static constexpr int kEach = Form::kEach;
  const S *first, *taps;

  __device__ void row(int i, float (&value)[kEach][Form::Taps::window_cols]) const {
#pragma unroll
    for (int j = 0; j < Form::Taps::window_cols; ++j) {
      Raw<S, kEach> raw;
      raw.load(first + Form::offset(i, j));
#pragma unroll
      for (int l = 0; l < kEach; ++l) value[l][j] = raw.value(l);
    }
  }
  __device__ float tap(int l, int i) const {
    Raw<S, kEach> raw;
    raw.load(taps + i * HeldTaps<Form, S>::kLd);
    return raw.value(l);
  }
};

// The first operand of products, of channels from c on.
template <class Form, typename S>
__device__ void convolve_patch(const Separable<S>& g, int c, const S* patch, const S* taps, S* to) {
  constexpr int kEach = Form::kEach, kQ = Form::kQ;
  const int lane = static_cast<int>(threadIdx.x) % Form::kLanes * kEach;
  const int group = static_cast<int>(threadIdx.x) / Form::kLanes, row = group / 2, col = group % 2 * kQ;
  float v[kEach][kQ];
#pragma unroll
  for (int l = 0; l < kEach; ++l)
#pragma unroll
    for (int q = 0; q < kQ; ++q) v[l][q] = 0.f;
  const PatchWindow<Form, S> window{patch + Form::offset(row * g.stride, col * g.stride) + lane, taps + lane};
  for_taps<typename Form::Taps>(window, [&](int l, int, int q, int tap, float value) {
    v[l][q] += window.tap(l, tap) * value;
  });
  float bias[kEach];
#pragma unroll
  for (int l = 0; l < kEach; ++l) bias[l] = c + lane + l < g.channels ? g.taps_bias[c + lane + l] : 0.f;
#pragma unroll
  for (int q = 0; q < kQ; ++q) {
    Pack<S, kEach> pack;
#pragma unroll
    for (int l = 0; l < kEach; ++l) pack.lane[l] = static_cast<S>(v[l][q] + bias[l]);
    store<S, kEach>(to + (row * kTileWidth + col + q) * Form::A::kLd + lane, pack);
  }
}

template <typename S, int K, int STRIDE, int PIXELS, int COLS>
__global__ void __launch_bounds__((SeparableForm<S, K, STRIDE, PIXELS, COLS>::kThreads),
                                  (SeparableForm<S, K, STRIDE, PIXELS, COLS>::kBlocks))
    separable_kernel(const __grid_constant__ Separable<S> g) {
  if constexpr (multiplies<S>()) {
    using Form = SeparableForm<S, K, STRIDE, PIXELS, COLS>;
    using A = typename Form::A;
    using B = typename Form::B;
    constexpr int kPatch = Form::kShared.patch / sizeof(S), kTaps = Form::kShared.taps / sizeof(S);
    DETNAS_SHARED(S, patches);  // twice, as taps and second operands
    S* taps = patches + 2 * kPatch;
    S* second = taps + 2 * kTaps;
    S* first = second + 2 * B::kSize;
    const int col_tiles = (g.cols + COLS - 1) / COLS, col0 = static_cast<int>(blockIdx.x % col_tiles) * COLS;
    const TileRows rows(g, blockIdx.x / col_tiles);

    typename Form::Results results;
    HeldTaps<Form, S> held;
    copy_patch<Form>(g, rows, 0, patches);
    copy_weights<Form, COLS>(g, col0, 0, second);
    held.load(g, 0);
    held.store(taps);
    int stage = 0;
#pragma unroll 1
    for (int c = 0; c < g.channels; c += Form::kDepth, stage ^= 1) {
      const bool more = c + Form::kDepth < g.channels;
      const int next = stage ^ 1;
      wait_copies();
      __syncthreads();  // all of this stage is there, and nobody reads the other one or the first operand any more
      if (more) {       // in flight meanwhile
        copy_patch<Form>(g, rows, c + Form::kDepth, patches + next * kPatch);
        copy_weights<Form, COLS>(g, col0, c + Form::kDepth, second + next * B::kSize);
        held.load(g, c + Form::kDepth);
      }
      convolve_patch<Form>(g, c, patches + stage * kPatch, taps + stage * kTaps, first);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < Form::kDepth; k += kProductDepth<S>)
        results.template add<S, A, B>(first, second + stage * B::kSize, k);
      if (more) held.store(taps + next * kTaps);
    }

    const int cols = g.cols - col0 < COLS ? g.cols - col0 : COLS;
    typename Form::Results::template Passing<S, Form::V> passing;
    if (g.join.left) passing.fetch(results, g.join, rows, col0, cols);
    results.add_bias(g.bias + col0, cols);
    results.relu();
    if (g.join.first) results.template join<S, Form::V>(g.join, passing, rows, col0, cols);
    else results.template store<S, Form::V>(g.out + col0, g.cols, rows, cols);
  } else {
    trap();  // the entry points do not come here
  }
}

template <typename S, int K, int STRIDE, int PIXELS, int COLS>
void launch_separable_form(const Separable<S>& g, Stream stream) {
  using Form = SeparableForm<S, K, STRIDE, PIXELS, COLS>;
  auto kernel = &separable_kernel<S, K, STRIDE, PIXELS, COLS>;
  allow_shared(kernel, Form::kShared.all);
  DETNAS_LAUNCH(kernel, dim3(g.tiles() * g.col_tiles()), dim3(Form::kThreads), Form::kShared.all, stream, g);
}

template <typename S, int K>
void launch_separable_kernel(const Separable<S>& g, Stream stream) {
  const bool narrow = g.tile_cols == 64;
  if (g.stride == 2) {
    if (narrow) launch_separable_form<S, K, 2, 64, 64>(g, stream);
    else launch_separable_form<S, K, 2, 64, 160>(g, stream);
  } else if (g.tile_pixels == 64) {
    launch_separable_form<S, K, 1, 64, 64>(g, stream);
  } else {
    if (narrow) launch_separable_form<S, K, 1, 128, 64>(g, stream);
    else launch_separable_form<S, K, 1, 128, 160>(g, stream);
  }
}

template <typename S>
void launch_separable(const Separable<S>& g, Stream stream) {
  if (g.kernel == 3) launch_separable_kernel<S, 3>(g, stream);
  else if (g.kernel == 5) launch_separable_kernel<S, 5>(g, stream);
  else launch_separable_kernel<S, 7>(g, stream);
}

}  // namespace cuda
}  // namespace detnas
