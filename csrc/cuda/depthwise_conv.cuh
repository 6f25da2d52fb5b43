// Depthwise convolution and its gradients.
//
// Terminology: a block owns a tile of kTileRows x kTileCols output pixels and a slab of kLanes
// channels, one per thread in x. The input tile with its halo goes through shared memory once, the
// pending affine map and ReLU applied on the way in; a padded zero stays zero.
#pragma once
#include "bn_stats.cuh"
#include "pixelwise.cuh"

namespace detnas {
namespace cuda {

constexpr int kTileRows = 8, kTileCols = 8;

template <typename S>
struct Depthwise {
  Source<S> x;  // the input, or for grad_input the gradient of the output
  const float* weight;  // [k * k][channels]
  const float* bias;
  bool out_relu;
  S* out;
  int channels, height, width, out_height, out_width, kernel, stride, dilation;
  float *mean, *m2, *count;  // partial moments per tile, or null
  __device__ int pad() const { return (kernel - 1) / 2 * dilation; }
};

template <typename S>
inline int64_t tile_count(const Depthwise<S>& a, int64_t images) {
  return images * ceil_div(a.out_height, kTileRows) * ceil_div(a.out_width, kTileCols);
}

template <typename S, int K>
__global__ void depthwise_kernel(Depthwise<S> a) {
  DETNAS_SHARED(float, tile);
  const int c = blockIdx.y * kLanes + threadIdx.x;
  const int tiles_x = (a.out_width + kTileCols - 1) / kTileCols;
  const int tiles_y = (a.out_height + kTileRows - 1) / kTileRows;
  const int64_t index = blockIdx.x;
  const int64_t image = index / (tiles_x * tiles_y);
  const int ty = static_cast<int>(index / tiles_x % tiles_y), tx = static_cast<int>(index % tiles_x);
  const int in_cols = (kTileCols - 1) * a.stride + (K - 1) * a.dilation + 1;
  const int in_rows = (kTileRows - 1) * a.stride + (K - 1) * a.dilation + 1;
  const int y0 = ty * kTileRows * a.stride - a.pad(), x0 = tx * kTileCols * a.stride - a.pad();
  for (int i = threadIdx.y; i < in_rows * in_cols; i += kRows) {
    const int y = y0 + i / in_cols, x = x0 + i % in_cols;
    float v[1] = {0.f};
    if (c < a.channels && y >= 0 && y < a.height && x >= 0 && x < a.width)
      a.x.template read<1>((image * a.height + y) * a.width + x, c, v);
    tile[i * kLanes + threadIdx.x] = v[0];
  }
  __syncthreads();
  Moments local[1] = {{0.f, 0.f, 0.f}};
  float w[K * K];
  const float bias = a.bias && c < a.channels ? a.bias[c] : 0.f;
  for (int t = 0; t < K * K; ++t) w[t] = c < a.channels ? a.weight[t * a.channels + c] : 0.f;
  // A thread makes one row of the tile.
  const int oy = ty * kTileRows + static_cast<int>(threadIdx.y);
  float ref = 0.f, sum = 0.f, sq = 0.f;
  int n = 0;
  for (int col = 0; col < kTileCols; ++col) {
    const int ox = tx * kTileCols + col;
    if (c >= a.channels || oy >= a.out_height || ox >= a.out_width) continue;
    float v = bias;
    for (int ky = 0; ky < K; ++ky)
      for (int kx = 0; kx < K; ++kx)
        v += w[ky * K + kx] *
             tile[((threadIdx.y * a.stride + ky * a.dilation) * in_cols + col * a.stride +
                   kx * a.dilation) * kLanes + threadIdx.x];
    if (n == 0) ref = v - v == 0.f ? v : 0.f;
    sum += v - ref;
    sq += (v - ref) * (v - ref);
    ++n;
    if (a.out_relu) v = v < 0.f ? 0.f : v;
    a.out[((image * a.out_height + oy) * a.out_width + ox) * a.channels + c] = static_cast<S>(v);
  }
  if (!a.mean) return;
  const float k = static_cast<float>(n), m = n ? sum / k : 0.f, s = sq - sum * m;
  local[0] = {k, ref + m, s < 0.f ? 0.f : s};
  __syncthreads();  // the tile's memory is used again
  write_moments<1>(local, c, a.channels, a.mean, a.m2, a.count, index);
}

// Shared memory of a launch: at most 8 * 8 outputs at stride 2 with k 7, dilation 3 need 34 * 34
// inputs of 32 channels, 148 KB; above 48 KB the kernel must be told, below.
template <typename S>
inline int64_t depthwise_shared(const Depthwise<S>& a) {
  const int64_t rows = (kTileRows - 1) * a.stride + (a.kernel - 1) * a.dilation + 1;
  const int64_t cols = (kTileCols - 1) * a.stride + (a.kernel - 1) * a.dilation + 1;
  const int64_t tile = rows * cols * kLanes * sizeof(float);
  const int64_t moments = kRows * kLanes * sizeof(Moments);
  return tile > moments ? tile : moments;
}

// A thread per input pixel and channel gathers from the taps that divide evenly.
template <typename S>
__global__ void depthwise_grad_input_kernel(Depthwise<S> a, int64_t pixels) {
  const int64_t total = pixels * a.channels, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int c = static_cast<int>(i % a.channels);
    const int64_t p = i / a.channels;
    const int x = static_cast<int>(p % a.width), y = static_cast<int>(p / a.width % a.height);
    const int64_t image = p / a.width / a.height;
    float sum = 0.f;
    for (int ky = 0; ky < a.kernel; ++ky) {
      const int ty = y + a.pad() - ky * a.dilation;
      if (ty < 0 || ty % a.stride || ty / a.stride >= a.out_height) continue;
      for (int kx = 0; kx < a.kernel; ++kx) {
        const int tx = x + a.pad() - kx * a.dilation;
        if (tx < 0 || tx % a.stride || tx / a.stride >= a.out_width) continue;
        float g[1];
        a.x.template read<1>((image * a.out_height + ty / a.stride) * a.out_width + tx / a.stride, c, g);
        sum += g[0] * a.weight[(ky * a.kernel + kx) * a.channels + c];
      }
    }
    a.out[i] = static_cast<S>(sum);
  }
}

// Partial sums [chunk][k * k][channels] of grad * input over output pixels.
template <typename S, int K>
__global__ void depthwise_grad_weight_kernel(Depthwise<S> a, Source<S> grad, int64_t pixels,
                                             int64_t per_chunk, float* partial) {
  const int c = blockIdx.x * kLanes + threadIdx.x;
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  float sums[K * K];
  for (int t = 0; t < K * K; ++t) sums[t] = 0.f;
  if (c < a.channels)
    for (int64_t p = begin + threadIdx.y; p < end; p += kRows) {
      const int ox = static_cast<int>(p % a.out_width);
      const int oy = static_cast<int>(p / a.out_width % a.out_height);
      const int64_t image = p / a.out_width / a.out_height;
      float g[1];
      grad.template read<1>(p, c, g);
#pragma unroll
      for (int ky = 0; ky < K; ++ky) {
        const int y = oy * a.stride - a.pad() + ky * a.dilation;
        if (y < 0 || y >= a.height) continue;
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          const int x = ox * a.stride - a.pad() + kx * a.dilation;
          if (x < 0 || x >= a.width) continue;
          float v[1];
          a.x.template read<1>((image * a.height + y) * a.width + x, c, v);
          sums[ky * K + kx] += g[0] * v[0];
        }
      }
    }
  write_sums<K * K>(sums, c, a.channels, partial, blockIdx.y);
}

template <typename S, int K>
void launch_depthwise_k(const Depthwise<S>& a, int64_t images, Stream stream) {
  auto kernel = &depthwise_kernel<S, K>;
  const int64_t shared = depthwise_shared(a);
#ifndef DETNAS_EMULATE
  if (shared > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
#endif
  DETNAS_LAUNCH(kernel, dim3(tile_count(a, images), ceil_div(a.channels, kLanes)),
                dim3(kLanes, kRows), shared, stream, a);
}

template <typename S>
void launch_depthwise(const Depthwise<S>& a, int64_t images, Stream stream) {
  if (a.kernel == 3) launch_depthwise_k<S, 3>(a, images, stream);
  if (a.kernel == 5) launch_depthwise_k<S, 5>(a, images, stream);
  if (a.kernel == 7) launch_depthwise_k<S, 7>(a, images, stream);
}

template <typename S>
void launch_depthwise_grad_input(const Depthwise<S>& a, int64_t images, Stream stream) {
  auto kernel = &depthwise_grad_input_kernel<S>;
  const int64_t pixels = images * a.height * a.width;
  DETNAS_LAUNCH(kernel, dim3(grid_size(pixels * a.channels, 256)), dim3(256), 0, stream, a, pixels);
}

template <typename S, int K>
void launch_depthwise_grad_weight_k(const Depthwise<S>& a, const Source<S>& grad, int64_t pixels,
                                    int64_t chunks, float* partial, Stream stream) {
  auto kernel = &depthwise_grad_weight_kernel<S, K>;
  const int64_t shared = kRows * K * K * kLanes * sizeof(float);
#ifndef DETNAS_EMULATE
  if (shared > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
#endif
  DETNAS_LAUNCH(kernel, dim3(ceil_div(a.channels, kLanes), chunks), dim3(kLanes, kRows), shared,
                stream, a, grad, pixels, ceil_div(pixels, chunks), partial);
}

// sums: [k * k][channels]; partial: chunks of them.
template <typename S>
void launch_depthwise_grad_weight(const Depthwise<S>& a, const Source<S>& grad, int64_t pixels,
                                  int64_t chunks, float* partial, float* sums, Stream stream) {
  if (a.kernel == 3) launch_depthwise_grad_weight_k<S, 3>(a, grad, pixels, chunks, partial, stream);
  if (a.kernel == 5) launch_depthwise_grad_weight_k<S, 5>(a, grad, pixels, chunks, partial, stream);
  if (a.kernel == 7) launch_depthwise_grad_weight_k<S, 7>(a, grad, pixels, chunks, partial, stream);
  launch_sum_chunks(partial, chunks, static_cast<int64_t>(a.kernel) * a.kernel * a.channels, sums, stream);
}

}  // namespace cuda
}  // namespace detnas
