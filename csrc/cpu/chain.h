// A chain of convolutions over rows: what blocks in evaluation are made of on the CPU.
//
// Its stages are depthwise and 1x1 convolutions with bias and ReLU. A task makes a range of output rows in
// steps of a few rows such that what a step touches stays in the second-level cache. A stage hands the rows of
// a step on to the next one; for a depthwise stage, those that it needs again (its halo) stay, so that a task
// makes every row once. Neighbouring tasks make the rows between them twice; where that is much, all threads
// make one stage after the other instead.
#pragma once
#include "conv.h"

namespace detnas {
namespace cpu {

constexpr int64_t kCacheBytes = 512 * 1024;  // of the second-level cache, for what a step hands on

template <typename T>
struct Stage {
  bool depthwise = false;
  int64_t in_channels = 0, out_channels = 0, kernel = 1, stride = 1;
  bool relu = false;
  const T* weight = nullptr;  // packed
  Padded<T> bias;
  int64_t in_height = 0, in_width = 0, out_height = 0, out_width = 0;
  int64_t pad() const { return kernel / 2; }
  // Multiply-adds of some rows of output.
  int64_t work(int64_t rows) const {
    return rows * out_width * out_channels * (depthwise ? kernel * kernel : in_channels);
  }
  // Tasks that threads share if all of them make this stage of whole images.
  int64_t tasks(int64_t images, int64_t threads) const {
    return depthwise ? band_tasks(images, in_channels, out_height) * ceil_div(in_channels, kSlab)
                     : product_tasks(images * out_height * out_width, out_channels, threads);
  }
  // The input's rows that output rows from `begin` on, and up to `end`, need.
  int64_t first_input(int64_t begin) const {
    return depthwise ? std::max<int64_t>(begin * stride - pad(), 0) : begin;
  }
  int64_t last_input(int64_t end) const {
    return depthwise ? std::min((end - 1) * stride + pad() + 1, in_height) : end;
  }
};

// Rows of a stage's output that the next one reads: [first, made).
template <typename T>
struct Rows {
  int64_t first = 0, made = 0;
  Buffer<T> memory;
};

template <typename T>
void grow(Buffer<T>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
}

// Where the last stage's output goes: its channels, or from `channels` on those of `second`, whole panels.
template <typename T>
struct Output {
  T* data = nullptr;
  int64_t ld = 0;
  T* second = nullptr;
  int64_t channels = 0;
  // From a pixel on.
  Output at(int64_t pixel) const {
    return {data + pixel * ld, ld, second ? second + pixel * ld : nullptr, channels};
  }
};

template <typename T>
struct Chain {
  std::vector<Stage<T>> stages;
  Source<T> input;  // the first stage's, over whole images

  const Stage<T>& last() const { return stages.back(); }

  // The memory of stage i's output. What the next stage reads once shares that of stage 0.
  static Buffer<T>& memory(std::vector<Rows<T>>& rows, const std::vector<Stage<T>>& stages, int64_t i) {
    return rows[stages[i + 1].depthwise ? i + 1 : 0].memory;
  }

  // Room for stage i's rows up to `end`; those before `from` are not needed any more.
  void make_room(std::vector<Rows<T>>& rows, int64_t i, int64_t from, int64_t end) const {
    const int64_t row = stages[i].out_width * stages[i].out_channels;
    Buffer<T>& buffer = memory(rows, stages, i);
    Rows<T>& mine = rows[i];
    if (from > mine.first && mine.made > from)
      std::copy_n(buffer.data() + (from - mine.first) * row, (mine.made - from) * row, buffer.data());
    mine.first = from;
    grow(buffer, (end - from) * row + kChannelPad);
  }

  // Makes the last stage's rows [begin, end) into `out`, which begins with row `begin`; the rows
  // before were the last ones made.
  void make(std::vector<Rows<T>>& rows, int64_t image, int64_t begin, int64_t end, const Output<T>& out) const {
    const int64_t count = stages.size();
    std::vector<int64_t> ends(count);
    for (int64_t i = count - 1, e = end; i >= 0; e = stages[i].last_input(e), --i) ends[i] = e;
    for (int64_t i = 0; i < count; ++i) {
      const Stage<T>& s = stages[i];
      const bool is_last = i + 1 == count;
      const int64_t from = is_last ? begin : rows[i].made;
      if (!is_last)
        make_room(rows, i, stages[i + 1].first_input(i + 2 == count ? begin : rows[i + 1].made), ends[i]);
      if (from >= ends[i]) continue;
      Source<T> source = input;  // its first pixel: that of row 0
      if (i == 0) {
        source.data += image * s.in_height * s.in_width * source.ld;
      } else {
        source = Source<T>();
        source.ld = s.in_channels;
        source.data = memory(rows, stages, i - 1).data() - rows[i - 1].first * s.in_width * source.ld;
      }
      Sink<T> sink;  // its first pixel: that of row `from`
      sink.bias = s.bias.get();
      sink.relu = s.relu;
      if (is_last) {
        put(out, sink);
      } else {
        sink.ld = s.out_channels;
        sink.out = memory(rows, stages, i).data() + (from - rows[i].first) * s.out_width * sink.ld;
      }
      convolve(s, source, sink, from, ends[i]);
      if (!is_last) rows[i].made = ends[i];
    }
  }

  static void put(const Output<T>& out, Sink<T>& sink) {
    sink.out = out.data;
    sink.ld = out.ld;
    sink.second = out.second;
    sink.channels = out.channels;
  }
  static GemmArgs<T> product(const Stage<T>& s, const Source<T>& source, const Sink<T>& sink) {
    GemmArgs<T> g;
    g.source = source;
    g.sink = sink;
    g.packed = s.weight;
    g.n = s.out_channels;
    g.k = s.in_channels;
    return g;
  }
  static DepthwiseArgs<T> depthwise(const Stage<T>& s, const Source<T>& source, const Sink<T>& sink) {
    DepthwiseArgs<T> d;
    d.source = source;
    d.sink = sink;
    d.w = s.weight;
    d.channels = s.in_channels;
    d.height = s.in_height;
    d.width = s.in_width;
    d.kernel = s.kernel;
    d.stride = s.stride;
    d.out_height = s.out_height;
    d.out_width = s.out_width;
    return d;
  }

  static void convolve(const Stage<T>& s, Source<T> source, Sink<T> sink, int64_t begin, int64_t end) {
    if (!s.depthwise) {
      source.data += begin * s.in_width * source.ld;
      const GemmArgs<T> g = product(s, source, sink);
      kernels<T>().gemm(g, 0, (end - begin) * s.out_width, workspace<T>(gemm_workspace(g.k)));
      return;
    }
    sink.out -= begin * s.out_width * sink.ld;
    const DepthwiseArgs<T> d = depthwise(s, source, sink);
    T* memory = workspace<T>(depthwise_workspace(d));
    for (int64_t c = 0; c < d.channels; c += kSlab) kernels<T>().depthwise(d, 0, c, begin, end, memory);
  }

  // A stage of whole images, by all threads.
  static void share(const Stage<T>& s, const Source<T>& source, const Sink<T>& sink, int64_t images) {
    if (!s.depthwise) {
      const GemmArgs<T> g = product(s, source, sink);
      const int64_t pixels = images * s.out_height * s.out_width;
      auto multiply = [&](int64_t, int64_t begin, int64_t end, int64_t first, int64_t count) {
        kernels<T>().gemm(of_columns(g, first, count), begin, end, workspace<T>(gemm_workspace(g.k)));
      };
      return for_products(pixels, task_rows(pixels), g.n, multiply);
    }
    const DepthwiseArgs<T> d = depthwise(s, source, sink);
    for_bands(images, d.channels, d.out_height, [&](int64_t n, int64_t c, int64_t, int64_t begin, int64_t end) {
      kernels<T>().depthwise(d, n, c, begin, end, workspace<T>(depthwise_workspace(d)));
    });
  }

  // Makes all rows of some images into `out`, one stage after the other: no row is made twice.
  void make_together(Buffer<T> (&memory)[2], int64_t images, const Output<T>& out) const {
    Source<T> source = input;
    for (size_t i = 0; i < stages.size(); ++i) {
      const Stage<T>& s = stages[i];
      const bool is_last = i + 1 == stages.size();
      if (!is_last) grow(memory[i % 2], images * s.out_height * s.out_width * s.out_channels + kChannelPad);
      Sink<T> sink;
      sink.bias = s.bias.get();
      sink.relu = s.relu;
      if (is_last) {
        put(out, sink);
      } else {
        sink.ld = s.out_channels;
        sink.out = memory[i % 2].data();
      }
      share(s, source, sink, images);
      source = Source<T>();
      source.data = sink.out;
      source.ld = sink.ld;
    }
  }

  // Multiply-adds of the last stage's rows [begin, end) and of all that they are made of.
  int64_t work(int64_t begin, int64_t end) const {
    int64_t sum = 0;
    for (int64_t i = static_cast<int64_t>(stages.size()) - 1; i >= 0; --i) {
      const Stage<T>& s = stages[i];
      sum += s.work(end - begin);
      begin = s.first_input(begin);
      end = s.last_input(end);
    }
    return sum;
  }

  // Where every stage begins so that the last one can begin with row `begin`.
  void start(std::vector<Rows<T>>& rows, int64_t begin) const {
    if (rows.size() < stages.size() + 1) rows.resize(stages.size() + 1);
    for (int64_t i = static_cast<int64_t>(stages.size()) - 1; i > 0; --i) {
      begin = stages[i].first_input(begin);
      rows[i - 1].first = rows[i - 1].made = begin;
    }
  }

  // Rows of output per step.
  int64_t step() const {
    int64_t largest = 1;  // bytes that a stage reads and writes for a row
    for (const Stage<T>& s : stages)
      largest = std::max<int64_t>(largest, (s.in_width * s.in_channels * s.stride +
                                            s.out_width * s.out_channels) * sizeof(T));
    const int64_t tile = ceil_div(kGemmTile, std::max<int64_t>(last().out_width, 1));
    return std::max(kCacheBytes / largest, tile);
  }
};

}  // namespace cpu
}  // namespace detnas
