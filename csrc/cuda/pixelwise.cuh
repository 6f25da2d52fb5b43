// Ops that look at one pixel at a time: shuffle and concatenation, mixed sums, and the gradient of
// a pending affine map. Reductions leave one row of partial sums per chunk of pixels.
#pragma once
#include "platform.cuh"

namespace detnas {
namespace cuda {

// Position, in the concatenation of `channels`, of channel j of the shuffled result.
__device__ inline int shuffled(int method, int j, int channels) {
  if (method == 1) return j / 2 + (j % 2) * (channels / 2);
  if (method == 2) return j < channels / 2 ? 2 * j : 2 * (j - channels / 2) + 1;
  return j;
}
// The inverse: where channel q of the concatenation went.
__device__ inline int unshuffled(int method, int q, int channels) {
  if (method == 1) return q < channels / 2 ? 2 * q : 2 * (q - channels / 2) + 1;
  if (method == 2) return q % 2 == 0 ? q / 2 : channels / 2 + q / 2;
  return q;
}

template <typename S>
struct Shuffle {
  Source<S> left, right;
  int c_left, c_right, method, c_out_left;
  S* out_left;
  S* out_right;
  int64_t ld_out_left, ld_out_right;
};

// A thread makes channel j of both halves: their inputs are neighbours.
template <typename S>
__global__ void shuffle_kernel(Shuffle<S> a, int64_t pixels) {
  const int channels = a.c_left + a.c_right;
  const int rest = channels - a.c_out_left, width = a.c_out_left > rest ? a.c_out_left : rest;
  const int64_t total = pixels * width, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t p = i / width;
    const int j = static_cast<int>(i % width);
    for (int side = 0; side < 2; ++side) {
      if (j >= (side ? rest : a.c_out_left)) continue;
      const int q = shuffled(a.method, side ? a.c_out_left + j : j, channels);
      float v[1];
      if (q < a.c_left) a.left.template read<1>(p, q, v);
      else a.right.template read<1>(p, q - a.c_left, v);
      S* out = side ? a.out_right + p * a.ld_out_right : a.out_left + p * a.ld_out_left;
      out[j] = static_cast<S>(v[0]);
    }
  }
}

inline int grid_size(int64_t items, int block) {
  const int64_t blocks = ceil_div(items, block);
  return static_cast<int>(blocks < 8192 ? (blocks > 0 ? blocks : 1) : 8192);
}

template <typename S>
void launch_shuffle(const Shuffle<S>& a, int64_t pixels, Stream stream) {
  auto kernel = &shuffle_kernel<S>;
  const int64_t width = a.c_left + a.c_right - a.c_out_left;
  DETNAS_LAUNCH(kernel, dim3(grid_size(pixels * (width > a.c_out_left ? width : a.c_out_left), 256)),
                dim3(256), 0, stream, a, pixels);
}

// Sums a block's rows of threads; row 0 writes out[chunk][row of sums][channel].
template <int K>
__device__ void write_sums(const float (&sum)[K], int c, int channels, float* out, int64_t chunk) {
  DETNAS_SHARED(float, shared);  // [kRows][K][kLanes]
  for (int k = 0; k < K; ++k) shared[(threadIdx.y * K + k) * kLanes + threadIdx.x] = sum[k];
  __syncthreads();
  if (threadIdx.y == 0 && c < channels)
    for (int k = 0; k < K; ++k) {
      float s = 0.f;
      for (int r = 0; r < kRows; ++r) s += shared[(r * K + k) * kLanes + threadIdx.x];
      out[(chunk * K + k) * channels + c] = s;
    }
}

// Gradient of the pending map of one half: out = g * scale where x passed, with the partial sums
// of g * x and g. The gradient of channel c stands at channel c + offset of the concatenation.
template <typename S>
struct AffineGrad {
  const S* grad_left;
  const S* grad_right;
  int64_t ld_left, ld_right;
  int c_out_left, method, all_channels, offset;
  const S* x;
  int64_t ld_x;
  const float* scale;
  const float* shift;
  bool relu;
  S* out;
};

template <typename S>
__global__ void affine_grad_kernel(AffineGrad<S> a, int64_t pixels, int channels, int64_t per_chunk,
                                   float* partial) {
  const int c = blockIdx.x * kLanes + threadIdx.x;
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  float sums[2] = {0.f, 0.f};
  if (c < channels) {
    const int j = unshuffled(a.method, c + a.offset, a.all_channels);
    const float scale = a.scale ? a.scale[c] : 1.f, shift = a.scale ? a.shift[c] : 0.f;
    for (int64_t p = begin + threadIdx.y; p < end; p += kRows) {
      float g = static_cast<float>(j < a.c_out_left ? a.grad_left[p * a.ld_left + j]
                                                    : a.grad_right[p * a.ld_right + j - a.c_out_left]);
      const float x = static_cast<float>(a.x[p * a.ld_x + c]);
      if (a.relu && x * scale + shift <= 0.f) g = 0.f;
      sums[0] += g * x;
      sums[1] += g;
      a.out[p * channels + c] = static_cast<S>(g * scale);
    }
  }
  write_sums<2>(sums, c, channels, partial, blockIdx.y);
}

// out[i] = sum over chunks of partial[chunk][i].
static __global__ void sum_chunks_kernel(const float* partial, int64_t chunks, int64_t size, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  double s = 0;
  for (int64_t k = 0; k < chunks; ++k) s += partial[k * size + i];
  out[i] = static_cast<float>(s);
}

inline void launch_sum_chunks(const float* partial, int64_t chunks, int64_t size, float* out,
                              Stream stream) {
  auto kernel = &sum_chunks_kernel;
  DETNAS_LAUNCH(kernel, dim3(ceil_div(size, 128)), dim3(128), 0, stream, partial, chunks, size, out);
}

// sums: [2][channels], d_scale then d_shift; partial: chunks of them.
template <typename S>
void launch_affine_grad(const AffineGrad<S>& a, int64_t pixels, int channels, int64_t chunks,
                        float* partial, float* sums, Stream stream) {
  auto kernel = &affine_grad_kernel<S>;
  DETNAS_LAUNCH(kernel, dim3(ceil_div(channels, kLanes), chunks), dim3(kLanes, kRows),
                kRows * 2 * kLanes * sizeof(float), stream, a, pixels, channels,
                ceil_div(pixels, chunks), partial);
  launch_sum_chunks(partial, chunks, 2 * channels, sums, stream);
}

// Applies a source: out = its values, contiguous.
template <typename S, int V>
__global__ void transform_kernel(Source<S> x, int64_t pixels, int channels, S* out) {
  const int width = channels / V;
  const int64_t total = pixels * width, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t p = i / width;
    const int c = static_cast<int>(i % width) * V;
    float v[V];
    x.template read<V>(p, c, v);
    Pack<S, V> packed;
    for (int k = 0; k < V; ++k) packed.lane[k] = static_cast<S>(v[k]);
    *reinterpret_cast<Pack<S, V>*>(out + p * channels + c) = packed;
  }
}

template <typename S>
void launch_transform(const Source<S>& x, int64_t pixels, int channels, S* out, Stream stream) {
  if (vectorizable(x, channels) && vectorizable<S>(out, channels, channels)) {
    constexpr int V = 16 / sizeof(S);
    auto kernel = &transform_kernel<S, V>;
    DETNAS_LAUNCH(kernel, dim3(grid_size(pixels * channels / V, 256)), dim3(256), 0, stream, x, pixels,
                  channels, out);
  } else {
    auto kernel = &transform_kernel<S, 1>;
    DETNAS_LAUNCH(kernel, dim3(grid_size(pixels * channels, 256)), dim3(256), 0, stream, x, pixels,
                  channels, out);
  }
}

template <typename S>
struct Mixed {
  const S* y[kMaxMixed];
  const float* scale[kMaxMixed];
  const float* shift[kMaxMixed];
  const float* weights;
  int count;
  const S* residual;
  S* out;
  const S* grad;
  S* grad_y[kMaxMixed];
};

template <typename S, int V>
__global__ void mixed_sum_kernel(Mixed<S> a, int64_t pixels, int channels) {
  const int width = channels / V;
  const int64_t total = pixels * width, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int c = static_cast<int>(i % width) * V;
    const int64_t at = i / width * channels + c;
    float v[V];
    for (int k = 0; k < V; ++k) v[k] = 0.f;
    if (a.residual) {
      const Pack<S, V> r = *reinterpret_cast<const Pack<S, V>*>(a.residual + at);
      for (int k = 0; k < V; ++k) v[k] = static_cast<float>(r.lane[k]);
    }
    for (int n = 0; n < a.count; ++n) {
      const Pack<S, V> y = *reinterpret_cast<const Pack<S, V>*>(a.y[n] + at);
      const float w = a.weights[n];
      for (int k = 0; k < V; ++k)
        v[k] += w * (a.scale[n][c + k] * static_cast<float>(y.lane[k]) + a.shift[n][c + k]);
    }
    Pack<S, V> packed;
    for (int k = 0; k < V; ++k) packed.lane[k] = static_cast<S>(v[k]);
    *reinterpret_cast<Pack<S, V>*>(a.out + at) = packed;
  }
}

template <typename S>
void launch_mixed_sum(const Mixed<S>& a, int64_t pixels, int channels, Stream stream) {
  bool vector = vectorizable<S>(a.out, channels, channels) &&
                (!a.residual || vectorizable<S>(a.residual, channels, channels));
  for (int i = 0; i < a.count; ++i) vector = vector && vectorizable<S>(a.y[i], channels, channels);
  if (vector) {
    constexpr int V = 16 / sizeof(S);
    auto kernel = &mixed_sum_kernel<S, V>;
    DETNAS_LAUNCH(kernel, dim3(grid_size(pixels * channels / V, 256)), dim3(256), 0, stream, a, pixels, channels);
  } else {
    auto kernel = &mixed_sum_kernel<S, 1>;
    DETNAS_LAUNCH(kernel, dim3(grid_size(pixels * channels, 256)), dim3(256), 0, stream, a, pixels, channels);
  }
}

// grad_y and partial sums: row 0 of grad, row 1 + n of grad * y_n. One read of everything.
template <typename S>
__global__ void mixed_sum_grad_kernel(Mixed<S> a, int64_t pixels, int channels, int64_t per_chunk,
                                      float* partial) {
  const int c = blockIdx.x * kLanes + threadIdx.x;
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  float sums[1 + kMaxMixed], factor[kMaxMixed];
  for (int n = 0; n < 1 + kMaxMixed; ++n) sums[n] = 0.f;
  if (c < channels) {
#pragma unroll
    for (int n = 0; n < kMaxMixed; ++n)
      factor[n] = n < a.count ? a.weights[n] * a.scale[n][c] : 0.f;
    for (int64_t p = begin + threadIdx.y; p < end; p += kRows) {
      const int64_t at = p * channels + c;
      const float g = static_cast<float>(a.grad[at]);
      sums[0] += g;
#pragma unroll
      for (int n = 0; n < kMaxMixed; ++n)
        if (n < a.count) {
          sums[1 + n] += g * static_cast<float>(a.y[n][at]);
          a.grad_y[n][at] = static_cast<S>(g * factor[n]);
        }
    }
  }
  write_sums<1 + kMaxMixed>(sums, c, channels, partial, blockIdx.y);
}

// sums: [1 + kMaxMixed][channels].
template <typename S>
void launch_mixed_sum_grad(const Mixed<S>& a, int64_t pixels, int channels, int64_t chunks,
                           float* partial, float* sums, Stream stream) {
  auto kernel = &mixed_sum_grad_kernel<S>;
  DETNAS_LAUNCH(kernel, dim3(ceil_div(channels, kLanes), chunks), dim3(kLanes, kRows),
                kRows * (1 + kMaxMixed) * kLanes * sizeof(float), stream, a, pixels, channels,
                ceil_div(pixels, chunks), partial);
  launch_sum_chunks(partial, chunks, (1 + kMaxMixed) * static_cast<int64_t>(channels), sums, stream);
}

}  // namespace cuda
}  // namespace detnas
