// What the kernels that look at one pixel at a time share: how threads lie over a map, readers that
// keep what is pending on their channels in registers, and sums over pixels.
//
// Terminology: a thread owns V neighbouring channels, a vector; `lanes` threads of a block lie along
// channels, `rows` along pixels; a slab is the channels of a block, a chunk its pixels.
#pragma once
#include "packs.cuh"

namespace detnas {
namespace cuda {

constexpr int kBlock = 128;  // threads of a block, at most: the kernels want many registers

struct Tiling {
  int lanes, rows, slabs;
  int64_t chunks, per_chunk;
  dim3 grid() const { return dim3(slabs, chunks); }
  dim3 block() const { return dim3(lanes, rows); }
  int threads() const { return lanes * rows; }
};

// Blocks for `pixels` x `vectors`, each thread at least `per_thread` pixels. It follows from the
// shape alone, so results are reproducible.
inline Tiling tiling(int64_t pixels, int64_t vectors, int per_thread, int64_t blocks) {
  Tiling t;
  t.slabs = static_cast<int>(ceil_div(vectors, 64));
  t.lanes = static_cast<int>(ceil_div(vectors, t.slabs));
  t.rows = kBlock / t.lanes < 64 ? kBlock / t.lanes : 64;
  const int64_t useful = ceil_div(pixels, static_cast<int64_t>(t.rows) * per_thread);
  const int64_t wanted = ceil_div(blocks, t.slabs);
  t.per_chunk = ceil_div(pixels, useful < wanted ? useful : wanted);
  t.chunks = ceil_div(pixels, t.per_chunk);
  return t;
}

// For reductions by threads that read `in_flight` pixels at a time: few chunks, each a row of partial
// results, and a single one for a small map.
inline Tiling reduction_tiling(int64_t pixels, int64_t vectors, int in_flight) {
  constexpr int kRowsOfOne = 32, kRounds = 6;
  if (pixels > kRowsOfOne * kRounds * in_flight) return tiling(pixels, vectors, 2 * in_flight, 1024);
  Tiling t;
  t.slabs = static_cast<int>(ceil_div(vectors, kBlock / kRowsOfOne));
  t.lanes = static_cast<int>(ceil_div(vectors, t.slabs));
  t.rows = kRowsOfOne;
  t.chunks = 1;
  t.per_chunk = pixels;
  return t;
}

// A source at V channels from c, with the affine map and ReLU pending on it, so many vectors on.
template <typename S, int V>
struct Reader {
  const S* data;
  int64_t ld;
  float scale[V], shift[V];
  bool relu;

  __device__ Reader(const Source<S>& s, int c, int vectors = 0) : data(s.data), ld(s.ld), relu(s.relu) {
    if (data) data += c;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      scale[i] = 1.f;
      shift[i] = 0.f;
    }
    if (!s.scale) return;
    load_vector<V>(s.scale + vectors + c, scale);
    load_vector<V>(s.shift + vectors + c, shift);
  }
  __device__ Pack<S, V> load(int64_t pixel) const { return cuda::load<S, V>(data + pixel * ld); }
  __device__ void values(const Pack<S, V>& raw, float (&out)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      out[i] = static_cast<float>(raw.lane[i]) * scale[i] + shift[i];
      if (relu) out[i] = out[i] < 0.f ? 0.f : out[i];
    }
  }
};

// Sums v over a block's rows of threads into out[0..V), null for lanes beyond the channels. All
// threads call it; shared: V floats per thread, free again on return.
template <int V>
__device__ void block_sums(const float (&v)[V], float* shared, float* out) {
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int i = 0; i < V; ++i) shared[i * threads + thread] = v[i];
  __syncthreads();
  for (int i = threadIdx.y; i < V; i += blockDim.y) {
    float sum = 0.f;
    for (int r = 0; r < static_cast<int>(blockDim.y); ++r)
      sum += shared[i * threads + r * blockDim.x + threadIdx.x];
    if (out) out[i] = sum;
  }
  __syncthreads();
}

// Sum of column[k * stride] over k < count by a block's rows of threads, for each of its lanes; all
// threads call it and get it. shared: a double per thread, free again on return.
__device__ inline double column_sum(const float* column, int64_t count, int64_t stride,
                                    double* shared) {
  double sum = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.y; k < count; k += blockDim.y) sum += column[k * stride];
  shared[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int r = 0; r < static_cast<int>(blockDim.y); ++r) sum += shared[r * blockDim.x + threadIdx.x];
  __syncthreads();
  return sum;
}

// A block of kLanes columns for the sums over `chunks` rows.
inline dim3 column_block(int64_t chunks) {
  const int64_t rows = ceil_div(chunks, 4);
  return dim3(kLanes, rows < 32 ? rows : 32);
}
inline int64_t column_shared(dim3 block) { return block.x * block.y * sizeof(double); }

// Where ranges of a row of sums go: index i < end[k] of the first such k to out[k], null to drop.
template <typename O>
struct Segments {
  O* out[4];
  int64_t end[4];
};

// out[i] = sum over chunks of partial[chunk][i].
template <typename O>
__global__ void __launch_bounds__(kMostThreads)
sum_chunks_kernel(const float* partial, int64_t chunks, int64_t size, Segments<O> to) {
  DETNAS_SHARED(double, shared);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  const double sum = column_sum(partial + i, i < size ? chunks : 0, size, shared);
  if (threadIdx.y != 0 || i >= size) return;
  int64_t begin = 0;
  bool done = false;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (!done && i < to.end[k]) {
      if (to.out[k]) to.out[k][i - begin] = static_cast<O>(static_cast<float>(sum));
      done = true;
    }
    begin = to.end[k];
  }
}

template <typename O>
void launch_sum_chunks(const float* partial, int64_t chunks, int64_t size, const Segments<O>& to,
                       Stream stream) {
  auto kernel = &sum_chunks_kernel<O>;
  const dim3 block = column_block(chunks);
  DETNAS_LAUNCH(kernel, dim3(ceil_div(size, kLanes)), block, column_shared(block), stream, partial,
                chunks, size, to);
}
template <typename O>
void launch_sum_chunks(const float* partial, int64_t chunks, int64_t size, O* out, Stream stream) {
  launch_sum_chunks(partial, chunks, size, Segments<O>{{out}, {size, size, size, size}}, stream);
}

}  // namespace cuda
}  // namespace detnas
