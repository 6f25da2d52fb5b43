// shuffle_block on the CPU: a whole eval-mode block as a chain over rows.
//
// Terminology: a chain is a list of stages, each a depthwise or a 1x1 convolution with bias and
// ReLU. A task makes a range of output rows in steps of a few rows such that what a step touches
// stays in the second-level cache. A stage hands the rows of a step on to the next one; a depthwise
// stage keeps those that it still needs (its halo) in its ring, so that every row is made once.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "conv.h"

namespace detnas {
namespace cpu {
namespace {

constexpr int64_t kCacheBytes = 512 * 1024;  // of the second-level cache, for one step

template <typename T>
struct Stage {
  bool depthwise = false;
  int64_t in_channels = 0, out_channels = 0, kernel = 1, stride = 1;
  bool relu = false;
  const T* weight = nullptr;  // packed
  Padded<T> bias;
  int64_t in_height = 0, in_width = 0, out_height = 0, out_width = 0;
  int64_t pad() const { return kernel / 2; }
  // The end of the input's rows that output rows up to `end` need.
  int64_t last_input(int64_t end) const {
    return depthwise ? std::min((end - 1) * stride + pad() + 1, in_height) : end;
  }
};

// What a stage keeps while a task goes down an image.
template <typename T>
struct Progress {
  int64_t made = 0;          // rows of output so far
  Buffer<T> rows;            // the last of them, which the next stage reads at once
  Buffer<T> ring;            // of a depthwise stage: rows of input that are still needed, by slab
  std::vector<int64_t> next_row;
};

template <typename T>
struct Chain {
  std::vector<Stage<T>> stages;
  Source<T> input;  // the first stage's, over whole images
  int64_t out_offset = 0;

  static DepthwiseArgs<T> geometry(const Stage<T>& s) {
    DepthwiseArgs<T> d;
    d.channels = s.in_channels;
    d.height = s.in_height;
    d.width = s.in_width;
    d.kernel = s.kernel;
    d.stride = s.stride;
    d.out_height = s.out_height;
    d.out_width = s.out_width;
    return d;
  }

  // Makes stage i's output rows up to `end`.
  void advance(std::vector<Progress<T>>& progress, int64_t i, int64_t image, int64_t end, T* out,
               int64_t ld_out) const {
    const Stage<T>& s = stages[i];
    Progress<T>& mine = progress[i];
    const bool last = i + 1 == static_cast<int64_t>(stages.size());
    const int64_t make = mine.made;
    if (make >= end) return;
    Source<T> source = input;  // its first pixel: that of row `from`
    int64_t from = 0;
    if (i > 0) {
      from = progress[i - 1].made;
      advance(progress, i - 1, image, s.last_input(end), out, ld_out);
      source = Source<T>();
      source.data = progress[i - 1].rows.data();
      source.ld = s.in_channels;
    } else {
      source.data += image * s.in_height * s.in_width * source.ld;
    }
    Sink<T> sink;  // its first pixel: that of row `make`
    sink.bias = s.bias.get();
    sink.relu = s.relu;
    sink.ld = last ? ld_out : s.out_channels;
    if (last) {
      sink.out = out + (image * s.out_height + make) * s.out_width * ld_out + out_offset;
    } else {
      const int64_t size = (end - make) * s.out_width * s.out_channels + 16;
      if (static_cast<int64_t>(mine.rows.size()) < size) mine.rows.resize(size);
      sink.out = mine.rows.data();
    }
    if (!s.depthwise) {
      GemmArgs<T> g;
      g.source = source;
      g.source.data += (make - from) * s.in_width * source.ld;
      g.sink = sink;
      g.packed = s.weight;
      g.n = s.out_channels;
      g.k = s.in_channels;
      kernels<T>().gemm(g, 0, (end - make) * s.out_width, workspace<T>(gemm_workspace(g.k)));
    } else {
      DepthwiseArgs<T> d = geometry(s);
      d.source = source;
      d.source.data -= from * s.in_width * source.ld;
      d.sink = sink;
      d.sink.out -= make * s.out_width * sink.ld;
      d.w = s.weight;
      for (int64_t slab = 0; slab * kSlab < d.channels; ++slab) {
        d.ring = mine.ring.data() + slab * ring_size(d);
        d.next_row = &mine.next_row[slab];
        kernels<T>().depthwise(d, 0, slab * kSlab, make, end, nullptr);
      }
    }
    mine.made = end;
  }

  // Where every stage begins so that the last one can begin with row `begin`.
  void start(std::vector<Progress<T>>& progress, int64_t begin) const {
    if (progress.size() < stages.size()) progress.resize(stages.size());
    for (int64_t i = static_cast<int64_t>(stages.size()) - 1; i >= 0; --i) {
      const Stage<T>& s = stages[i];
      progress[i].made = begin;
      if (!s.depthwise) continue;
      const int64_t slabs = ceil_div(s.in_channels, kSlab), size = slabs * ring_size(geometry(s));
      if (static_cast<int64_t>(progress[i].ring.size()) < size) progress[i].ring.resize(size);
      progress[i].next_row.assign(slabs, kFreshRing);
      begin = std::max<int64_t>(begin * s.stride - s.pad(), 0);
    }
  }

  void run(int64_t image, int64_t begin, int64_t end, T* out, int64_t ld_out) const {
    int64_t row_bytes = 0;
    for (const Stage<T>& s : stages)
      row_bytes += (s.in_width * s.in_channels * s.stride + s.out_width * s.out_channels) * sizeof(T);
    const int64_t cache_rows = std::max<int64_t>(kCacheBytes / std::max<int64_t>(row_bytes, 1), 1);
    const int64_t tile_rows = ceil_div(24, std::max<int64_t>(stages.back().out_width, 1));
    const int64_t step = std::max(cache_rows, tile_rows);
    thread_local std::vector<Progress<T>> progress;  // kept: large allocations cost page faults
#if defined(DETNAS_D2_CHECKED)
    progress.clear();
#endif
    start(progress, begin);
    for (int64_t r = begin; r < end; r += step)
      advance(progress, stages.size() - 1, image, std::min(end, r + step), out, ld_out);
  }
};

template <typename T>
int64_t packed_size_of(const Tensor& w) {
  return w.size(2) > 1 ? packed_depthwise_size(w) : packed_size<T>(w.size(0), w.size(1));
}

// Layers first, first + 1, ... (count of them); their weights are packed into `memory` one after the
// other, and `memory` is moved behind them.
template <typename T>
Chain<T> make_chain(at::TensorList weights, at::TensorList biases, size_t first, size_t count,
                    int64_t channels, int64_t height, int64_t width, int64_t stride, T*& memory) {
  Chain<T> chain;
  for (size_t i = first; i < first + count; ++i) {
    const Tensor& w = weights[i];
    Stage<T> s;
    s.depthwise = w.size(2) > 1;
    s.kernel = w.size(2);
    s.in_channels = channels;
    s.out_channels = w.size(0);
    s.relu = !s.depthwise;
    if (s.depthwise) {
      pack_depthwise<T>(w, memory);
      s.stride = stride;
      stride = 1;
    } else {
      const Tensor contiguous = w.contiguous();
      pack<T>(contiguous.const_data_ptr<T>(), channels, 1, s.out_channels, channels, memory);
    }
    s.weight = memory;
    memory += packed_size_of<T>(w);
    s.bias = Padded<T>(OptTensor(biases[i]));
    s.in_height = height;
    s.in_width = width;
    height = s.out_height = conv_out(height, s.stride);
    width = s.out_width = conv_out(width, s.stride);
    channels = s.out_channels;
    chain.stages.push_back(std::move(s));
  }
  return chain;
}

// Channels [0, C / 2) of the shuffled input to the same place of the output.
template <typename T>
void copy_left(const Source<T>& left, int64_t half, int64_t begin, int64_t end, T* out, int64_t ld) {
  ShuffleArgs<T> a;
  a.left = left;
  a.right = left;
  a.c_left = half;
  a.c_out_left = half;
  a.out_left = out;
  a.out_right = out + half;
  a.ld_out_left = a.ld_out_right = ld;
  kernels<T>().shuffle(a, begin, end, workspace<T>(shuffle_workspace(half)));
}

template <typename T>
Tensor forward(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
               int64_t stride, int64_t method) {
  const Map<T> map = as_map<T>(x);
  const size_t main = main_layers(kernel);
  const int64_t half = map.c / 2, in = stride == 1 ? half : map.c;
  Source<T> left = map.source(), right = map.source();
  if (stride == 1) {
    left.order = right.order = method == 2 ? Order::kStrided : Order::kInterleaved;
    left.half = right.half = half;
    if (method == 2) right.data += 1;
    else right.first = half;
  }
  int64_t size = 0;
  for (const Tensor& w : weights) size += packed_size_of<T>(w);
  T* memory = workspace<T, 1>(size);
  Chain<T> chain = make_chain<T>(weights, biases, 0, main, in, map.h, map.w, stride, memory);
  chain.input = right;
  const Stage<T>& end = chain.stages.back();
  const int64_t oh = end.out_height, ow = end.out_width, c_left = stride == 1 ? half : map.c;
  const int64_t c_out = c_left + end.out_channels;
  chain.out_offset = c_left;
  Chain<T> projection;
  if (stride == 2) {
    projection = make_chain<T>(weights, biases, main, 2, map.c, map.h, map.w, 2, memory);
    projection.input = map.source();
  }
  Tensor y = empty_map(map.n, c_out, oh, ow, x);
  if (y.numel() == 0) return y;
  T* out = y.data_ptr<T>();
  // Results do not depend on the cut, so it may follow the number of threads.
  const int64_t threads = at::get_num_threads();
  const int64_t parts = std::min(oh, std::max<int64_t>(ceil_div(threads, map.n), 1));
  const int64_t rows = ceil_div(oh, parts);
  at::parallel_for(0, map.n * parts, 1, [&](int64_t b, int64_t e) {
    for (int64_t t = b; t < e; ++t) {
      const int64_t image = t / parts, r0 = t % parts * rows, r1 = std::min(oh, r0 + rows);
      if (r0 >= r1) continue;
      if (stride == 1)
        copy_left(left, half, (image * oh + r0) * ow, (image * oh + r1) * ow, out, c_out);
      else
        projection.run(image, r0, r1, out, c_out);
      chain.run(image, r0, r1, out, c_out);
    }
  });
  return y;
}

Tensor shuffle_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                     int64_t stride, int64_t method) {
  check_block(x, weights, biases, kernel, stride, method);
  if (is_reduced(x)) {
    std::vector<Tensor> w, b;
    for (const Tensor& t : weights) w.push_back(t.to(at::kFloat));
    for (const Tensor& t : biases) b.push_back(t.to(at::kFloat));
    return shuffle_block(x.to(at::kFloat), w, b, kernel, stride, method).to(x.scalar_type());
  }
  return dispatch(x, "shuffle_block", [&](auto zero) {
    return forward<decltype(zero)>(x, weights, biases, kernel, stride, method);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) { m.impl("shuffle_block", &detnas::cpu::shuffle_block); }
