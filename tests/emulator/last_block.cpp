// A launch whose blocks leave given rows of moments, and the last of which merges them: by slabs of
// `slab` channels, blocks of `lanes` x `rows_of_threads` threads. Compiled by test_last_block.py.
#include "cuda/last_block.cuh"
#include "separate_merge.cuh"

using namespace detnas::cuda;

struct Rows {
  const float *mean, *m2, *count;
  float *to_mean, *to_m2;
  int channels, slab;
  unsigned* tickets;
  StatsOut out;
};

__global__ void kernel(Rows a) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  const int begin = blockIdx.x * a.slab, end = begin + a.slab < a.channels ? begin + a.slab : a.channels;
  const int64_t row = blockIdx.y * static_cast<int64_t>(a.channels);
  for (int c = begin + thread; c < end; c += threads) {
    a.to_mean[row + c] = a.mean[row + c];
    a.to_m2[row + c] = a.m2[row + c];
  }
  if (!last_block(a.tickets + blockIdx.x, gridDim.y)) return;
  DETNAS_SHARED(double, shared);
  for (int c0 = begin; c0 < end; c0 += kLanes)
    merge_rows({a.to_mean, a.to_m2, a.channels, gridDim.y}, [&](int64_t k) { return a.count[k]; }, c0, end,
               shared, a.out);
}

extern "C" void in_last_block(const float* mean, const float* m2, const float* count, int rows, int channels,
                              int slab, int lanes, int rows_of_threads, float* scratch, unsigned* tickets,
                              float* out, double* total, const float* gamma, const float* beta, double eps) {
  const int64_t size = static_cast<int64_t>(rows) * channels;
  const StatsOut to{out, out + channels, total, gamma, beta, eps, out + 2 * channels, out + 3 * channels};
  const Rows a{mean, m2, count, scratch, scratch + size, channels, slab, tickets, to};
  auto k = &kernel;
  const dim3 block(lanes, rows_of_threads);
  DETNAS_LAUNCH(k, dim3(ceil_div(channels, slab), rows), block, merge_shared(lanes * rows_of_threads), 0, a);
}

extern "C" void separate(const float* mean, const float* m2, const float* count, int rows, int channels,
                         float* out, double total, const float* gamma, const float* beta, double eps) {
  separate_merge(mean, m2, count, rows, channels, out, out + channels);
  Fold<float> a{};
  a.count = &total, a.mean = out, a.m2 = out + channels, a.gamma = gamma, a.beta = beta;
  a.eps = eps, a.channels = channels, a.scale = out + 2 * channels, a.shift = out + 3 * channels;
  launch_fold(a, 0);
}
