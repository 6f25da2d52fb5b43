// Maps through what is pending on them.
#pragma once
#include "pixelwise.cuh"

namespace detnas {
namespace cuda {

// A gradient at V channels from c: x + add + mul * (y - mean), or x where y > 0.
template <typename S, int V>
struct GradReader {
  const S *data, *y;
  int64_t ld, ld_y;
  bool affine;
  float add[V], mul[V], mean[V];

  __device__ GradReader(const Source<S>& s, int c)
      : data(s.data + c), y(s.y + c), ld(s.ld), ld_y(s.ld_y), affine(s.add != nullptr) {
    if (!affine) return;
    load_vector<V>(s.add + c, add);
    load_vector<V>(s.mul + c, mul);
    load_vector<V>(s.mean + c, mean);
#pragma unroll
    for (int i = 0; i < V; ++i) add[i] *= s.add_factor, mul[i] *= s.mul_factor;
  }
  struct Raw {
    Pack<S, V> x, y;
  };
  __device__ Raw load(int64_t pixel) const {
    return {cuda::load<S, V>(data + pixel * ld), cuda::load<S, V>(y + pixel * ld_y)};
  }
  __device__ void values(const Raw& raw, float (&out)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float g = static_cast<float>(raw.x.lane[i]), other = static_cast<float>(raw.y.lane[i]);
      if (affine) out[i] = g + add[i] + mul[i] * (other - mean[i]);
      else out[i] = other <= 0.f ? 0.f : g;
    }
  }
};

// out = the values of a source, contiguous. R reads U pixels before the first is used.
template <typename S, int V, typename R, int U>
__global__ void transform_kernel(Source<S> x, int64_t pixels, int channels, int64_t per_chunk, S* out) {
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (c >= channels) return;
  const R reader(x, c);
  const int64_t begin = blockIdx.y * per_chunk, rows = blockDim.y;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  for (int64_t p = begin + threadIdx.y; p < end; p += U * rows) {
    decltype(reader.load(0)) raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u) raw[u] = reader.load(p + u * rows < end ? p + u * rows : p);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float v[V];
      reader.values(raw[u], v);
      if (p + u * rows < end) store<S, V>(out + (p + u * rows) * channels + c, v);
    }
  }
}

template <typename S, int V>
void launch_transform_v(const Source<S>& x, int64_t pixels, int channels, S* out, Stream stream) {
  const Tiling t = tiling(pixels, ceil_div(channels, V), 4, 4096);
  if (x.y) {
    auto kernel = &transform_kernel<S, V, GradReader<S, V>, 2>;
    DETNAS_LAUNCH(kernel, t.grid(), t.block(), 0, stream, x, pixels, channels, t.per_chunk, out);
  } else {
    auto kernel = &transform_kernel<S, V, Reader<S, V>, 4>;
    DETNAS_LAUNCH(kernel, t.grid(), t.block(), 0, stream, x, pixels, channels, t.per_chunk, out);
  }
}

// pixels > 0.
template <typename S>
void launch_transform(const Source<S>& x, int64_t pixels, int channels, S* out, Stream stream) {
  if (vectorizable(x, channels) && vectorizable<S>(out, channels, channels))
    launch_transform_v<S, 16 / sizeof(S)>(x, pixels, channels, out, stream);
  else
    launch_transform_v<S, 1>(x, pixels, channels, out, stream);
}

}  // namespace cuda
}  // namespace detnas
