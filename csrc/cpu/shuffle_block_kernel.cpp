// shuffle_block on the CPU: a whole eval-mode block as a chain over rows.
//
// Terminology: a chain is a list of stages, each a depthwise or a 1x1 convolution with bias and
// ReLU. A task makes a range of output rows in steps of a few rows such that what a step touches
// stays in the second-level cache. A stage hands the rows of a step on to the next one; for a
// depthwise stage, those that it needs again (its halo) stay, so that every row is made once.
#include <torch/library.h>

#include "conv.h"

namespace detnas {
namespace cpu {
namespace {

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
  void make(std::vector<Rows<T>>& rows, int64_t image, int64_t begin, int64_t end, T* out,
            int64_t ld_out) const {
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
      sink.ld = is_last ? ld_out : s.out_channels;
      sink.out = is_last ? out : memory(rows, stages, i).data() + (from - rows[i].first) * s.out_width * sink.ld;
      convolve(s, source, sink, from, ends[i]);
      if (!is_last) rows[i].made = ends[i];
    }
  }

  static void convolve(const Stage<T>& s, Source<T> source, Sink<T> sink, int64_t begin, int64_t end) {
    if (!s.depthwise) {
      GemmArgs<T> g;
      g.source = source;
      g.source.data += begin * s.in_width * source.ld;
      g.sink = sink;
      g.packed = s.weight;
      g.n = s.out_channels;
      g.k = s.in_channels;
      kernels<T>().gemm(g, 0, (end - begin) * s.out_width, workspace<T>(gemm_workspace(g.k)));
      return;
    }
    DepthwiseArgs<T> d;
    d.source = source;
    d.sink = sink;
    d.sink.out -= begin * s.out_width * sink.ld;
    d.w = s.weight;
    d.channels = s.in_channels;
    d.height = s.in_height;
    d.width = s.in_width;
    d.kernel = s.kernel;
    d.stride = s.stride;
    d.out_height = s.out_height;
    d.out_width = s.out_width;
    T* memory = workspace<T>(depthwise_workspace(d));
    for (int64_t c = 0; c < d.channels; c += kSlab) kernels<T>().depthwise(d, 0, c, begin, end, memory);
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

template <typename T>
int64_t packed_size_of(const Tensor& w) {
  return w.size(2) > 1 ? packed_depthwise_size(w) : packed_size<T>(w.size(0), w.size(1));
}

template <typename T>
void pack_layer(const Tensor& weight, T* out) {
  if (weight.size(2) > 1) return pack_depthwise<T>(weight, out);
  const Tensor w = weight.contiguous();
  pack<T>(w.template const_data_ptr<T>(), w.size(1), 1, w.size(0), w.size(1), out);
}

// What a block is made of.
struct Block {
  at::TensorList biases;
  int64_t kernel, stride;
};

// Layers first, first + 1, ... (count of them); `weights`: packed, one for each.
template <typename T>
Chain<T> make_chain(const std::vector<const T*>& weights, const Block& b, size_t first, size_t count,
                    int64_t channels, int64_t height, int64_t width) {
  Chain<T> chain;
  int64_t stride = b.stride;
  for (size_t i = first; i < first + count; ++i) {
    Stage<T> s;
    s.depthwise = is_depthwise(b.kernel, i);
    s.kernel = s.depthwise ? std::max<int64_t>(b.kernel, 3) : 1;
    s.in_channels = channels;
    s.out_channels = b.biases[i].size(0);
    s.relu = !s.depthwise;
    if (s.depthwise) std::swap(s.stride, stride);  // the first one strides
    s.weight = weights[i];
    s.bias = Padded<T>(OptTensor(b.biases[i]));
    s.in_height = height;
    s.in_width = width;
    height = s.out_height = conv_out(height, s.stride);
    width = s.out_width = conv_out(width, s.stride);
    channels = s.out_channels;
    chain.stages.push_back(std::move(s));
  }
  return chain;
}

// left, right: what the branches read, `like` giving batch and size, `channels` of each; at stride 1
// the left one passes as it is. out_method 0: concatenated, else shuffled and split.
template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& like, const Source<T>& left, const Source<T>& right,
                               int64_t channels_left, int64_t channels_right,
                               const std::vector<const T*>& weights, const Block& b, int64_t out_method) {
  const int64_t n = like.size(0), h = like.size(2), w = like.size(3);
  const size_t layers = main_layers(b.kernel);
  Chain<T> chain = make_chain<T>(weights, b, 0, layers, channels_right, h, w), projection;
  chain.input = right;
  if (b.stride == 2) {
    projection = make_chain<T>(weights, b, layers, 2, channels_left, h, w);
    projection.input = left;
  }
  const int64_t oh = chain.last().out_height, ow = chain.last().out_width;
  const int64_t c_left = b.stride == 1 ? channels_left : projection.last().out_channels;
  const int64_t c_right = chain.last().out_channels, c_out = c_left + c_right;
  ShuffleArgs<T> shuffle;
  shuffle.method = static_cast<int>(out_method);
  shuffle.c_left = c_left;
  shuffle.c_right = out_method == 0 ? 0 : c_right;
  shuffle.c_out_left = out_method == 0 ? c_left : c_out / 2;
  shuffle.left = left;
  shuffle.ld_out_left = out_method == 0 ? c_out : c_out / 2;
  shuffle.ld_out_right = c_out - (out_method == 0 ? 0 : c_out / 2);
  Tensor a, second;
  if (out_method == 0) {
    a = empty_map(n, c_out, oh, ow, like);
    second = at::empty({0}, like.options());
    shuffle.out_left = a.data_ptr<T>();
    shuffle.out_right = shuffle.out_left + c_left;
  } else {
    a = empty_map(n, c_out / 2, oh, ow, like);
    second = empty_map(n, c_out - c_out / 2, oh, ow, like);
    shuffle.out_left = a.data_ptr<T>();
    shuffle.out_right = second.data_ptr<T>();
  }
  if (a.numel() == 0) return {a, second};
  // Results do not depend on the cut, so it may follow the number of threads.
  const int64_t parts = std::min(oh, std::max<int64_t>(ceil_div(at::get_num_threads(), n), 1));
  const int64_t rows = ceil_div(oh, parts);
  const int64_t step = b.stride == 1 ? chain.step() : std::min(chain.step(), projection.step());
  at::parallel_for(0, n * parts, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<Rows<T>> main_rows, projection_rows;  // kept: large allocations cost page faults
    thread_local Buffer<T> main_out, projection_out;
#if defined(DETNAS_D2_CHECKED)
    main_rows.clear();
    projection_rows.clear();
#endif
    for (int64_t t = begin; t < end; ++t) {
      const int64_t image = t / parts, r0 = t % parts * rows, r1 = std::min(oh, r0 + rows);
      if (r0 >= r1) continue;
      chain.start(main_rows, r0);
      if (b.stride == 2) projection.start(projection_rows, r0);
      for (int64_t r = r0; r < r1; r += step) {
        const int64_t until = std::min(r1, r + step);
        const int64_t p0 = (image * oh + r) * ow, p1 = (image * oh + until) * ow, pixels = p1 - p0;
        ShuffleArgs<T> s = shuffle;
        if (out_method == 0) {
          chain.make(main_rows, image, r, until, shuffle.out_right + p0 * c_out, c_out);
          if (b.stride == 2)
            projection.make(projection_rows, image, r, until, shuffle.out_left + p0 * c_out, c_out);
          else
            kernels<T>().shuffle(s, p0, p1, workspace<T>(shuffle_workspace(c_left)));
          continue;
        }
        auto made = [&](const Chain<T>& of, std::vector<Rows<T>>& kept, Buffer<T>& out, int64_t c) {
          const int64_t size = pixels * c + kChannelPad;
#if defined(DETNAS_D2_CHECKED)
          out = Buffer<T>(size, std::numeric_limits<T>::quiet_NaN());
#endif
          grow(out, size);
          of.make(kept, image, r, until, out.data(), c);
          Source<T> source;
          source.data = out.data() - p0 * c;
          source.ld = c;
          return source;
        };
        if (b.stride == 2) s.left = made(projection, projection_rows, projection_out, c_left);
        s.right = made(chain, main_rows, main_out, c_right);
        kernels<T>().shuffle(s, p0, p1, workspace<T>(shuffle_workspace(c_out)));
      }
    }
  });
  return {a, second};
}

// The halves of a map shuffled by `method`.
template <typename T>
std::pair<Source<T>, Source<T>> shuffled_halves(const Map<T>& map, int64_t method) {
  Source<T> left = map.source(), right = left;
  left.order = right.order = method == 2 ? Order::kStrided : Order::kInterleaved;
  left.half = right.half = map.c / 2;
  if (method == 2) right.data += 1;
  else right.first = map.c / 2;
  return {left, right};
}

std::vector<Tensor> floats(at::TensorList list) {
  std::vector<Tensor> out;
  for (const Tensor& t : list) out.push_back(t.to(at::kFloat));
  return out;
}

std::vector<Tensor> pack_shuffle_block(at::TensorList weights, int64_t kernel, int64_t stride) {
  check_pack_block(weights, kernel, stride);
  std::vector<Tensor> packed;
  for (const Tensor& given : weights) {
    const Tensor w = is_reduced(given) ? given.to(at::kFloat) : given;
    const int64_t depth = w.size(2) > 1 ? w.size(2) * w.size(3) : w.size(1);
    Tensor out = at::empty({ceil_div(w.size(0), kPanel), depth, kPanel},
                           w.options().memory_format(at::MemoryFormat::Contiguous));
    dispatch(w, "pack_shuffle_block", [&](auto zero) {
      using T = decltype(zero);
      pack_layer<T>(w, out.data_ptr<T>());
    });
    packed.push_back(std::move(out));
  }
  return packed;
}

std::tuple<Tensor, Tensor> shuffle_block_packed(const Tensor& x, const OptTensor& right,
                                                at::TensorList weights, at::TensorList packed,
                                                at::TensorList biases, int64_t kernel, int64_t stride,
                                                int64_t method, int64_t out_method) {
  check_packed_block(x, right, weights, packed, biases, kernel, stride, method, out_method);
  if (is_reduced(x)) {
    const std::vector<Tensor> w = floats(weights), b = floats(biases);
    auto [y, z] = shuffle_block_packed(x.to(at::kFloat), to_type(right, at::kFloat), w, packed, b, kernel,
                                       stride, method, out_method);
    return {y.to(x.scalar_type()), z.to(x.scalar_type())};
  }
  return dispatch(x, "shuffle_block_packed", [&](auto zero) {
    using T = decltype(zero);
    const Map<T> map = as_map<T>(x, right.has_value()), other = right ? as_map<T>(*right, true) : map;
    Source<T> first = map.source(), second = other.source();
    const bool halve = stride == 1 && !right;
    if (halve) std::tie(first, second) = shuffled_halves(map, method);
    std::vector<const T*> pointers;
    for (const Tensor& t : packed) pointers.push_back(t.const_data_ptr<T>());
    return run<T>(map.tensor, first, second, halve ? map.c / 2 : map.c, halve ? map.c / 2 : other.c,
                  pointers, {biases, kernel, stride}, out_method);
  });
}

template <typename T>
Tensor forward(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
               int64_t stride, int64_t method) {
  const Map<T> map = as_map<T>(x);
  Source<T> left = map.source(), right = left;
  if (stride == 1) std::tie(left, right) = shuffled_halves(map, method);
  int64_t size = 0;
  for (const Tensor& w : weights) size += packed_size_of<T>(w);
  T* memory = workspace<T, 1>(size);
  std::vector<const T*> packed;
  for (const Tensor& w : weights) {
    pack_layer<T>(w, memory);
    packed.push_back(memory);
    memory += packed_size_of<T>(w);
  }
  const int64_t channels = stride == 1 ? map.c / 2 : map.c;
  return std::get<0>(run<T>(map.tensor, left, right, channels, channels, packed,
                            {biases, kernel, stride}, 0));
}

Tensor shuffle_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                     int64_t stride, int64_t method) {
  check_block(x, weights, biases, kernel, stride, method);
  if (is_reduced(x)) {
    const std::vector<Tensor> w = floats(weights), b = floats(biases);
    return shuffle_block(x.to(at::kFloat), w, b, kernel, stride, method).to(x.scalar_type());
  }
  return dispatch(x, "shuffle_block", [&](auto zero) {
    return forward<decltype(zero)>(x, weights, biases, kernel, stride, method);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("pack_shuffle_block", &detnas::cpu::pack_shuffle_block);
  m.impl("shuffle_block", &detnas::cpu::shuffle_block);
  m.impl("shuffle_block_packed", &detnas::cpu::shuffle_block_packed);
}
