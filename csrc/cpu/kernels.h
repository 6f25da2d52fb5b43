// The interface between the torch side (shapes, memory, threads) and the vector kernels.
//
// Kernels are plain functions on pointers, compiled three times from simd/all.h (baseline,
// AVX2, AVX-512) and chosen at run time; nothing here or below may include a torch header.
//
// Terminology: a "pixel" is one (n, y, x) position; a map of P pixels and C channels is read as
// data[p * ld + c], ld >= C (so halves of a channels_last tensor are maps too). A "source" is a
// map together with the per-channel function that is applied while it is read; a "sink" is where
// results go together with what is done on the way (bias, statistics, gradient of the source).
// Per-channel arrays that a source or sink names are padded with zeros to a multiple of 16.
#pragma once
#include <cstdint>

namespace detnas {

constexpr int64_t kChannelPad = 16;  // floats in the widest vector

// Where channel j of a source lies in a pixel's row.
//   kPlain:      j
//   kStrided:    2 j (a half of shuffle method 2; data points at its first channel)
//   kInterleaved: j / 2 + (j % 2) * half (shuffle method 1), counted from channel `first`
enum class Order : int { kPlain = 0, kStrided = 1, kInterleaved = 2 };

// value = data, then one of
//   forward:    relu?(scale * value + shift)
//   gradient:   value * (y > 0)                       (y given, no add/mul)
//               value + add + mul * (y - mean)        (y, add, mul and mean given)
template <typename T>
struct Source {
  const T* data = nullptr;
  int64_t ld = 0;
  const T* scale = nullptr;
  const T* shift = nullptr;
  bool relu = false;
  const T* y = nullptr;
  int64_t ld_y = 0;
  const T* add = nullptr;
  const T* mul = nullptr;
  const T* mean = nullptr;
  Order order = Order::kPlain;
  int64_t first = 0, half = 0;  // of kInterleaved
  bool plain() const { return !scale && !relu && !y && order == Order::kPlain; }
};

// Exactly one of three modes, per output value v of channel c:
//   plain (nothing set):  out = relu?(v + bias)
//   statistics (sum set): out = v + bias; d = out - ref; sum += d; sum_sq += d * d
//   gradient (x set):     g = v where the forward prologue of x passed it on, else 0;
//                         out = g * scale; d_scale += g * x; d_shift += g
// ref is written by the kernel: a finite value near those of its range.
template <typename T>
struct Sink {
  T* out = nullptr;
  int64_t ld = 0;
  T* second = nullptr;  // if given, where channels from `channels` on go, whole panels
  int64_t channels = 0;
  const T* bias = nullptr;
  bool relu = false;
  T* ref = nullptr;
  double* sum = nullptr;
  double* sum_sq = nullptr;
  const T* x = nullptr;
  int64_t ld_x = 0;
  const T* scale = nullptr;
  const T* shift = nullptr;
  bool x_relu = false;
  double* d_scale = nullptr;
  double* d_shift = nullptr;
};

// out[m, n] = sum_k source[m, k] * w[n, k] for the pixels [begin, end); w packed by pack_matrix.
template <typename T>
struct GemmArgs {
  Source<T> source;
  Sink<T> sink;
  const T* packed = nullptr;
  int64_t n = 0, k = 0;
};

// grad_w[n, k] = sum_m grad[m, n] * source[m, k]; acc has row length round_up(k, 32).
template <typename T>
struct GemmGradArgs {
  Source<T> grad, source;
  int64_t n = 0, k = 0;
};

// A 3x3 convolution of stride 1 and padding 1 by Winograd's F(4x4, 3x3) (simd/winograd.h). Tiles of at most 4x4
// outputs are counted through images, rows and columns. `in` and `out` hold, for some tiles, kPoints matrices
// each, `map_*` apart, with a row of channels for every tile that has the point; out = in * w, one product for
// each point.
template <typename T>
struct WinogradArgs {
  const T* x = nullptr;      // pixels x channels
  int64_t ld = 0;
  const T* zeros = nullptr;  // what lies beyond the map: as many as channels, in whole kChannelPads
  Sink<T> sink;              // plain or statistics
  int64_t channels = 0, out_channels = 0, height = 0, width = 0;
  const T* packed = nullptr;  // kPoints matrices, as winograd_weights makes them
  T* in = nullptr;
  T* out = nullptr;
  int64_t ld_in = 0, ld_out = 0, map_in = 0, map_out = 0;
  int64_t* rows = nullptr;  // of the kPoints matrices, taken so far; winograd_input and _output take some
};
constexpr int64_t kTileSize = 4;  // outputs of a tile in each direction
constexpr int64_t kPoints = 36;   // products of a tile

// A region of a map in size x size bins, each the mean of grid_y x grid_x samples; as torchvision's roi_align.
template <typename T>
struct RoiArgs {
  const T* x = nullptr;  // the image's first pixel
  int64_t ld = 0, channels = 0, height = 0, width = 0;
  T start_y = 0, start_x = 0, bin_y = 0, bin_x = 0;
  int64_t size = 0, grid_y = 0, grid_x = 0;
  T* out = nullptr;  // size * size pixels x channels
};

// Geometry of a depthwise convolution; w packed as [slab][k * k][kSlab].
template <typename T>
struct DepthwiseArgs {
  Source<T> source;
  Sink<T> sink;
  const T* w = nullptr;
  int64_t channels = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t kernel = 0, stride = 1, dilation = 1;
  int64_t pad() const { return (kernel - 1) / 2 * dilation; }
  const T* taps(int64_t c) const { return w + c * kernel * kernel; }  // of the slab that begins with c
};

// Columns of a panel of a packed matrix: [panel][k][kPanel]. A register tile of AVX2 reads whole
// lines, one after the other; with wider panels it would use half of the first-level cache's sets.
constexpr int64_t kPanel = 16;
constexpr int64_t kSlab = 16;     // channels a depthwise task handles at once
constexpr int64_t kMaxSums = 32;  // tensors mixed_sum takes

template <typename T>
struct ShuffleArgs {
  Source<T> left, right;
  int64_t c_left = 0, c_right = 0;
  int method = 0;  // 0 none, 1 interleave halves, 2 even and odd
  T* out_left = nullptr;  // first c_out_left channels of the shuffled concatenation
  T* out_right = nullptr;
  int64_t ld_out_left = 0, ld_out_right = 0, c_out_left = 0;
  // backward: out_* are gradients read, and these are written
  T* grad_left = nullptr;
  T* grad_right = nullptr;
  double *d_scale_left = nullptr, *d_shift_left = nullptr;
  double *d_scale_right = nullptr, *d_shift_right = nullptr;
};

template <typename T>
struct MixedSumArgs {
  int count = 0;
  const T* y[kMaxSums] = {};
  const T* scale[kMaxSums] = {};  // w_i * scale_i, padded
  const T* shift = nullptr;       // sum_i w_i * shift_i, padded
  const T* residual = nullptr;
  T* out = nullptr;
  int64_t channels = 0;
  // backward
  const T* grad = nullptr;
  T* grad_y[kMaxSums] = {};
  double* dot[kMaxSums] = {};  // per channel: sum_p grad * y_i
  double* total = nullptr;     // per channel: sum_p grad
};

// Statistics of one range: sums of (x - ref) and (x - ref)^2, ref a finite value near them.
template <typename T>
struct Moments {
  T* ref;
  double* sum;
  double* sum_sq;
};

template <typename T>
struct Kernels {
  void (*stats_channels_last)(const Source<T>&, int64_t begin, int64_t end, int64_t channels,
                              const Moments<T>&);
  // One channel plane of an NCHW tensor; `first`: ref is not yet set.
  void (*stats_plane)(const T* data, int64_t size, const T* scale, const T* shift, bool relu,
                      bool first, T* ref, double* sum, double* sum_sq);
  // w (n, k), strides in elements, into panels; columns beyond n are zero.
  void (*pack_matrix)(const T* w, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k,
                      T* packed);
  // out = packed * diag(scale), bias += packed * shift; out may be packed, bias has whole panels.
  void (*fold_matrix)(const T* packed, int64_t n, int64_t k, const T* scale, const T* shift, T* out,
                      T* bias);
  // What a source's pixels [begin, end) are read as, into out: begin's first, ld (whole kChannelPads) apart.
  void (*read)(const Source<T>&, int64_t begin, int64_t end, int64_t channels, T* out, int64_t ld);
  void (*gemm)(const GemmArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*gemm_grad_weight)(const GemmGradArgs<T>&, int64_t begin, int64_t end, T* acc,
                           T* workspace);
  // Image n, channels [c_begin, c_begin + kSlab), output rows [row_begin, row_end).
  void (*depthwise)(const DepthwiseArgs<T>&, int64_t n, int64_t c_begin, int64_t row_begin,
                    int64_t row_end, T* workspace);
  // The same for the gradient of the input: rows of the input; source is the output's gradient.
  void (*depthwise_grad_input)(const DepthwiseArgs<T>&, int64_t n, int64_t c_begin,
                               int64_t row_begin, int64_t row_end, T* workspace);
  // acc [k * k][kSlab] += over output rows; source is the input, grad the output's gradient.
  void (*depthwise_grad_weight)(const DepthwiseArgs<T>&, const Source<T>& grad, int64_t n,
                                int64_t c_begin, int64_t row_begin, int64_t row_end, T* acc,
                                T* workspace);
  void (*shuffle)(const ShuffleArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*shuffle_backward)(const ShuffleArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*mixed_sum)(const MixedSumArgs<T>&, int64_t begin, int64_t end);
  void (*mixed_sum_backward)(const MixedSumArgs<T>&, int64_t begin, int64_t end);
  // taps: weights (n, c, 3, 3) as pack_matrix packs a matrix (n, 9 c); out: kPoints packed matrices (n, c).
  void (*winograd_weights)(const T* taps, int64_t n, int64_t c, T* out);
  void (*winograd_input)(const WinogradArgs<T>&, int64_t begin, int64_t end);  // x to in
  void (*winograd_products)(const WinogradArgs<T>&);                           // in to out
  // out to the sink; how many pixels
  int64_t (*winograd_output)(const WinogradArgs<T>&, int64_t begin, int64_t end);
  void (*roi_align)(const RoiArgs<T>&);
  const char* name;
};

// Workspace sizes in elements, upper bounds for every instruction set.
constexpr int64_t round_up(int64_t x, int64_t m) { return (x + m - 1) / m * m; }
constexpr int64_t kGemmTile = 84;  // pixels per tile; a multiple of 6 and of 14
constexpr int64_t gemm_workspace(int64_t k) { return kGemmTile * (round_up(k, 32) + 32); }
constexpr int64_t gemm_grad_workspace(int64_t n, int64_t k) {
  return kGemmTile * (round_up(n, 32) + round_up(k, 32) + 64);
}
constexpr int64_t kShuffleBlock = 16;  // pixels shuffled at a time
constexpr int64_t shuffle_workspace(int64_t channels) {
  return kShuffleBlock * (round_up(channels, 16) + 64);
}
constexpr int64_t kRingSlack = 32;   // pixels that the last strip of a row reads beyond it, at most
constexpr int64_t kStripSlack = 64;  // pixels a strip may overrun a row by
template <typename T>
inline int64_t depthwise_workspace(const DepthwiseArgs<T>& a) {
  const int64_t halo = (a.kernel - 1) * a.dilation;
  const int64_t row = (a.width > a.out_width ? a.width : a.out_width) + 2 * halo + 3 * kStripSlack;
  return (halo + 4) * row * kSlab;
}

const Kernels<float>& kernels_default_float();
const Kernels<double>& kernels_default_double();
#if defined(__x86_64__)
const Kernels<float>& kernels_avx2_float();
const Kernels<float>& kernels_avx512_float();
#endif

}  // namespace detnas
