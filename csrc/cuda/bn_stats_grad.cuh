// The gradient of BatchNorm statistics, through what is pending on the map.
#pragma once
#include "pixelwise.cuh"

namespace detnas {
namespace cuda {

// x: the map, what is pending on it (v = relu?(scale * x + shift)) and, as add and mul, the gradients
// of mean and m2. The gradient of v is add + mul * (v - mean), none where the ReLU stopped v.
// partial: [chunk][2][channels], the sums of g * x and g, or null.
template <typename S, int V>
__global__ void __launch_bounds__(kBlock, 3)
stats_grad_kernel(Source<S> x, int64_t pixels, int channels, int64_t per_chunk, S* out, float* partial) {
  DETNAS_SHARED(float, shared);
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  float dot[V], total[V];
#pragma unroll
  for (int i = 0; i < V; ++i) dot[i] = total[i] = 0.f;
  if (c < channels) {
    const Reader<S, V> reader(x, c);
    float add[V], mul[V], mean[V];
    load_vector<V>(x.add + c, add);
    load_vector<V>(x.mul + c, mul);
    load_vector<V>(x.mean + c, mean);
    for (int64_t p = begin + threadIdx.y; p < end; p += blockDim.y) {
      const Pack<S, V> raw = reader.load(p);
      float dx[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float value = static_cast<float>(raw.lane[i]), v = value * reader.scale[i] + reader.shift[i];
        const float slope = add[i] * x.add_factor + mul[i] * x.mul_factor * (v - mean[i]);
        const float g = reader.relu && v <= 0.f ? 0.f : slope;
        dot[i] += g * value;
        total[i] += g;
        dx[i] = g * reader.scale[i];
      }
      store<S, V>(out + p * channels + c, dx);
    }
  }
  if (!partial) return;
  float* row = c < channels ? partial + blockIdx.y * 2 * static_cast<int64_t>(channels) + c : nullptr;
  block_sums<V>(dot, shared, row);
  block_sums<V>(total, shared, row ? row + channels : nullptr);
}

// How the gradient of statistics is cut.
struct StatsGradPlan {
  Tiling tiling;
  bool vector;
};

template <typename S>
StatsGradPlan plan_stats_grad(const Source<S>& x, int64_t pixels, int channels, const S* out) {
  constexpr int V = 16 / sizeof(S);
  const bool vector = vectorizable(x, channels) && vectorizable<S>(out, channels, channels);
  return {reduction_tiling(pixels, vector ? channels / V : channels, 1), vector};
}

// pixels, channels > 0. partial: tiling.chunks * 2 * channels floats and sums: where the gradients of
// scale and shift go; or null, where there is no scale.
template <typename S>
void launch_stats_grad(const Source<S>& x, const StatsGradPlan& plan, int64_t pixels, int channels, S* out,
                       float* partial, float* const (&sums)[2], Stream stream) {
  constexpr int V = 16 / sizeof(S);
  const Tiling& t = plan.tiling;
  auto kernel = plan.vector ? &stats_grad_kernel<S, V> : &stats_grad_kernel<S, 1>;
  const int64_t shared = partial ? (plan.vector ? V : 1) * t.threads() * sizeof(float) : 0;
  DETNAS_LAUNCH(kernel, t.grid(), t.block(), shared, stream, x, pixels, channels, t.per_chunk, out, partial);
  if (!partial) return;
  const int64_t c = channels;
  const Segments<float> to{{sums[0], sums[1]}, {c, 2 * c, 2 * c, 2 * c}};
  launch_sum_chunks(partial, t.chunks, 2 * c, to, stream);
}

}  // namespace cuda
}  // namespace detnas
