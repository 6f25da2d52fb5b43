// shuffle_block_stats and shuffle_blocks_stats on the CPU: what csrc/shuffle_block_stats.cpp makes of operators, to
// the bit, with their kernels and no tensors between the layers: large allocations cost page faults, and small ones
// add up.
#include <torch/library.h>

#include <optional>
#include <utility>

#include "../batches.h"
#include "../shuffle_block_stats.h"
#include "convolve.h"

namespace detnas {
namespace cpu {
namespace {

constexpr size_t kKept = 256 << 20;  // bytes of maps that a thread keeps between calls

// A map and what its reader applies to it.
template <typename T>
struct Pending {
  Source<T> source;
  int64_t channels = 0, height = 0, width = 0;
};

// What blocks need besides their results: three maps, of which a layer reads one, makes one and leaves alone what
// the main branch has made, what is pending on them, and the halves of a block's input and output.
template <typename T>
struct Memory {
  Buffer<T> maps[3], vectors[3], halves[2][2];
  Partials<T> partials;

  static Memory& of_thread() {
    thread_local Memory memory;
    return memory;
  }

  // `size` numbers, of which `kept` knows nothing.
  static T* of(Buffer<T>& kept, int64_t size) {
#if defined(DETNAS_D2_CHECKED)
    kept = Buffer<T>(size, std::numeric_limits<T>::quiet_NaN());
#endif
    if (static_cast<int64_t>(kept.size()) < size) {
      kept = Buffer<T>();
      kept.resize(size);
    }
    return kept.data();
  }
  void shrink() {
    size_t kept = 0;
    const auto all = {&maps[0], &maps[1], &maps[2], &halves[0][0], &halves[0][1], &halves[1][0], &halves[1][1]};
    for (const Buffer<T>* map : all) kept += map->size() * sizeof(T);
    if (kept <= kKept) return;
    for (Buffer<T>* map : all) *map = Buffer<T>();
  }
};

// The layers of a block on one of its batches.
template <typename T>
struct Layers {
  Memory<T>& memory;
  at::TensorList weights, packed, gammas, betas;  // packed: as pack_shuffle_block does, or none
  at::ArrayRef<double> eps;
  at::TensorList counts, means, m2s;
  int64_t batch, images;

  // Layers [first, last), the first depthwise convolution with `stride`. The result is in map `out`; the layers
  // before write to it and to map `other` in turn.
  Pending<T> run(Pending<T> x, size_t first, size_t last, int64_t stride, int out, int other) {
    for (size_t i = first; i < last; ++i) {
      const int64_t step = weights[i].size(2) > 1 ? std::exchange(stride, 1) : 1;
      x = layer(x, i, step, (last - i) % 2 == 1 ? out : other);
    }
    return x;
  }

  Pending<T> layer(const Pending<T>& x, size_t i, int64_t stride, int map) {
    const Tensor& w = weights[i];
    const bool spatial = w.size(2) > 1;
    const int64_t c = w.size(0), height = conv_out(x.height, stride), width = conv_out(x.width, stride);
    const int64_t pixels = images * height * width, padded = round_up(c, kChannelPad) + kChannelPad;
    Pending<T> y{{}, c, height, width};
    Sink<T> sink;
    y.source.data = sink.out = memory.of(memory.maps[map], pixels * c);
    y.source.ld = sink.ld = c;
    if (pixels * c == 0) memory.partials.reset(0, c);
    else if (spatial) depthwise(x, i, stride, y, sink);
    else product(x, i, pixels, sink);

    const double n = static_cast<double>(pixels);
    *counts[i].template data_ptr<double>() = n;
    T *mean = means[i].template data_ptr<T>() + batch * c, *m2 = m2s[i].template data_ptr<T>() + batch * c;
    memory.partials.moments(mean, m2);
    const Tensor gamma = values(gammas[i]), beta = values(betas[i]);
    T *scale = memory.of(memory.vectors[map], 2 * padded), *shift = scale + padded;
    fold_norm(n, mean, m2, gamma.const_data_ptr<T>(), beta.const_data_ptr<T>(), eps[i], c, scale, shift);
    std::fill(scale + c, scale + padded, T(0));
    std::fill(shift + c, shift + padded, T(0));
    y.source.scale = scale;
    y.source.shift = shift;
    y.source.relu = !spatial;
    return y;
  }

  static Tensor values(const Tensor& t) {
    constexpr auto type = c10::CppTypeToScalarType<T>::value;
    return (t.scalar_type() == type ? t : t.to(type)).contiguous();
  }

  // The weight of layer i as the kernels read it.
  const T* weight(size_t i) const {
    if (!packed.empty()) return packed[i].template const_data_ptr<T>();
    const Tensor w = weights[i].contiguous();
    const bool spatial = w.size(2) > 1;
    T* out = workspace<T, 1>(spatial ? packed_depthwise_size(w) : packed_size<T>(w.size(0), w.size(1)));
    if (spatial) pack_depthwise<T>(w, out);
    else pack<T>(w.template const_data_ptr<T>(), w.size(1), 1, w.size(0), w.size(1), out);
    return out;
  }

  void depthwise(const Pending<T>& x, size_t i, int64_t stride, const Pending<T>& y, const Sink<T>& sink) {
    DepthwiseArgs<T> args;
    args.source = x.source;
    args.sink = sink;
    args.w = weight(i);
    args.channels = x.channels;
    args.height = x.height;
    args.width = x.width;
    args.out_height = y.height;
    args.out_width = y.width;
    args.kernel = weights[i].size(2);
    args.stride = stride;
    memory.partials.reset(band_tasks(images, x.channels, y.height), x.channels);
    convolve_depthwise(args, images, &memory.partials);
  }

  void product(const Pending<T>& x, size_t i, int64_t pixels, const Sink<T>& sink) {
    GemmArgs<T> args;
    args.source = x.source;
    args.sink = sink;
    args.n = weights[i].size(0);
    args.k = weights[i].size(1);
    args.packed = weight(i);
    memory.partials.reset(ceil_div(pixels, task_rows(pixels)), args.n);
    multiply(args, pixels, &memory.partials);
  }
};

// Where a block's output goes: shuffled by `method` and split, or (0) concatenated.
template <typename T>
struct Target {
  int64_t method = 0;
  T *left = nullptr, *right = nullptr;
  int64_t ld_left = 0, ld_right = 0;

  // Into a map of all channels, or halves of them.
  Target(T* map, int64_t channels) : left(map), right(map + channels / 2), ld_left(channels), ld_right(channels) {}
  Target(int64_t out_method, T* a, T* b, int64_t channels)
      : method(out_method), left(a), right(b), ld_left(channels / 2), ld_right(channels - channels / 2) {}
};

// A block on one batch, whose input is `left`, or at stride 1 the halves of the shuffled one.
template <typename T>
void run_block(Layers<T>& layers, Pending<T> left, const Pending<T>* right, int64_t kernel, const Target<T>& out) {
  const int64_t stride = right ? 1 : 2;
  const size_t main = main_layers(kernel), count = block_layers(kernel, stride);
  const Pending<T> made = layers.run(right ? *right : left, 0, main, stride, 0, 1);
  if (!right) left = layers.run(left, main, count, stride, 1, 2);
  const int64_t channels = left.channels + made.channels, pixels = layers.images * made.height * made.width;
  if (pixels * channels == 0) return;
  ShuffleArgs<T> shuffle;
  shuffle.method = static_cast<int>(out.method);
  shuffle.c_left = left.channels;
  shuffle.c_right = made.channels;
  shuffle.c_out_left = channels / 2;
  shuffle.left = left.source;
  shuffle.right = made.source;
  shuffle.out_left = out.left;
  shuffle.out_right = out.right;
  shuffle.ld_out_left = out.ld_left;
  shuffle.ld_out_right = out.ld_right;
  for_tasks(pixels, task_rows(pixels), [&](int64_t, int64_t begin, int64_t end) {
    kernels<T>().shuffle(shuffle, begin, end, workspace<T>(shuffle_workspace(channels)));
  });
}

// Room for the statistics of all layers.
struct Room {
  std::vector<Tensor> counts, means, m2s;

  Room(at::TensorList weights, const Tensor& like, int64_t batches) {
    const auto options = like.options().memory_format(at::MemoryFormat::Contiguous);
    for (const Tensor& w : weights) {
      const int64_t c = w.size(0), shape[] = {batches, c};
      const at::IntArrayRef sizes(batches == 1 ? shape + 1 : shape, batches == 1 ? 1 : 2);
      counts.push_back(at::empty({}, options.dtype(at::kDouble)));
      means.push_back(at::empty(sizes, options));
      m2s.push_back(at::empty(sizes, options));
    }
  }
};

// One of several batches of a map and what is pending on it.
template <typename T>
struct Batch {
  Map<T> map;
  Padded<T> scale, shift;
  Pending<T> pending;

  Batch(const Tensor& x, const OptTensor& a, const OptTensor& b, bool relu, int64_t batches, int64_t i)
      : map(as_map<T>(batches == 1 ? x : batch_of(x, batches, i), true)),
        scale(batches == 1 ? a : vector_of(a, i)),
        shift(batches == 1 ? b : vector_of(b, i)),
        pending{map.source(), map.c, map.h, map.w} {
    pending.source.scale = scale.get();
    pending.source.shift = shift.get();
    pending.source.relu = relu;
  }
};

template <typename T>
BlockStats run(const Tensor& left, const OptTensor& right, const OptTensor& scale, const OptTensor& shift, bool relu,
               at::TensorList weights, at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
               int64_t kernel, int64_t stride, int64_t out_method, int64_t batches) {
  Memory<T>& memory = Memory<T>::of_thread();
  Room room(weights, left, batches);
  const int64_t channels = weights[main_layers(kernel) - 1].size(0) + (right ? left.size(1) : weights.back().size(0));
  const int64_t half = channels / 2, n = left.size(0);
  const int64_t height = conv_out(left.size(2), stride), width = conv_out(left.size(3), stride);
  const bool split = out_method != 0;
  const Tensor a = empty_map(n, split ? half : channels, height, width, left);
  const Tensor b = split ? empty_map(n, channels - half, height, width, left) : at::empty({0}, left.options());

  for (int64_t i = 0; i < batches; ++i) {
    const Batch<T> l(left, scale, shift, relu, batches, i);
    std::optional<Batch<T>> r;
    if (right) r.emplace(*right, OptTensor(), OptTensor(), false, batches, i);
    Layers<T> layers{memory, weights, {}, gammas, betas, eps, room.counts, room.means, room.m2s, i, n / batches};
    const int64_t first = i * (n / batches) * height * width;
    T* out = a.data_ptr<T>() + first * a.size(1);
    if (split) {
      run_block(layers, l.pending, r ? &r->pending : nullptr, kernel,
                {out_method, out, b.data_ptr<T>() + first * b.size(1), channels});
    } else {
      run_block(layers, l.pending, r ? &r->pending : nullptr, kernel, {out, channels});
    }
  }
  memory.shrink();
  return {a, b, std::move(room.counts), std::move(room.means), std::move(room.m2s)};
}

// All blocks on the first batch, then on the next: what lies between them stays in the caches.
template <typename T>
BlocksStats run(const BlockInput& in, at::TensorList weights, at::TensorList packed, at::TensorList gammas,
                at::TensorList betas, at::ArrayRef<double> eps, const Blocks& blocks, int64_t batches) {
  Memory<T>& memory = Memory<T>::of_thread();
  Room room(weights, in.left, batches);
  const int64_t images = in.left.size(0) / batches;
  std::vector<Tensor> outputs;
  for (int64_t i = 0; i < batches; ++i) {
    const Batch<T> x(in.left, in.scale, in.shift, in.relu, batches, i);
    std::optional<Batch<T>> other;
    if (in.right) other.emplace(*in.right, OptTensor(), OptTensor(), false, batches, i);
    Pending<T> left = x.pending, right;
    if (other) right = other->pending;
    size_t first = 0, output = 0;
    for (size_t j = 0; j < blocks.size(); ++j) {
      const size_t size = blocks.layers(j);
      const auto own = [&](auto list) { return list.empty() ? list : list.slice(first, size); };
      Layers<T> layers{memory, own(weights), own(packed), own(gammas), own(betas), own(eps),
                       own(at::TensorList(room.counts)), own(at::TensorList(room.means)),
                       own(at::TensorList(room.m2s)), i, images};
      const int64_t kernel = blocks.kernels[j], stride = blocks.strides[j];
      const int64_t passing = stride == 1 ? left.channels : layers.weights.back().size(0);
      const int64_t channels = passing + layers.weights[main_layers(kernel) - 1].size(0);
      const int64_t height = conv_out(left.height, stride), width = conv_out(left.width, stride);
      const int64_t pixels = images * height * width, method = blocks.out_method(j, output);
      Buffer<T>(&kept)[2] = memory.halves[j % 2];
      const auto go = [&](const Target<T>& out) {
        run_block(layers, left, stride == 1 ? &right : nullptr, kernel, out);
      };
      const auto next = [&](const T* data, int64_t c) {
        Source<T> source;
        source.data = data;
        source.ld = c;
        return Pending<T>{source, c, height, width};
      };
      if (method != 0) {
        const int64_t c = channels / 2;
        T *a = memory.of(kept[0], pixels * c), *b = memory.of(kept[1], pixels * c);
        go({method, a, b, channels});
        left = next(a, c);
        right = next(b, c);
      } else {
        T* out;
        if (blocks.wanted(j, output)) {
          if (i == 0) outputs.push_back(empty_map(in.left.size(0), channels, height, width, in.left));
          out = outputs[output++].template data_ptr<T>() + i * pixels * channels;
        } else {
          out = memory.of(kept[0], pixels * channels);
        }
        go({out, channels});
        left = next(out, channels);
        if (j + 1 < blocks.size() && blocks.strides[j + 1] == 1) {
          const auto halves = shuffled_halves(left.source, channels, blocks.methods[j + 1]);
          right = left = {halves.first, channels / 2, height, width};
          right.source = halves.second;
        }
      }
      first += size;
    }
  }
  memory.shrink();
  return {std::move(outputs), std::move(room.counts), std::move(room.means), std::move(room.m2s)};
}

BlockStats shuffle_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                               const OptTensor& shift, bool relu, at::TensorList weights, at::TensorList gammas,
                               at::TensorList betas, at::ArrayRef<double> eps, int64_t kernel, int64_t stride,
                               int64_t out_method, int64_t batches) {
  // Of few bits every operator rounds its result; and under autocast the halves may be of two dtypes.
  if (is_reduced(left) || (right && right->scalar_type() != left.scalar_type()))
    return composed_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride,
                                out_method, batches);
  check_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method,
                    batches);
  return dispatch(left, "shuffle_block_stats", [&](auto zero) {
    return run<decltype(zero)>(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride,
                               out_method, batches);
  });
}

BlocksStats shuffle_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu,
                                 at::TensorList weights, at::TensorList packed, at::TensorList gammas,
                                 at::TensorList betas, at::ArrayRef<double> eps, at::IntArrayRef kernels,
                                 at::IntArrayRef strides, at::IntArrayRef methods, at::IntArrayRef ends,
                                 int64_t batches) {
  if (is_reduced(x))
    return composed_blocks_stats(x, scale, shift, relu, weights, packed, gammas, betas, eps, kernels, strides,
                                 methods, ends, batches);
  const Blocks blocks{kernels, strides, methods, ends};
  check_blocks_stats(x, scale, shift, weights, packed, gammas, betas, eps, blocks, batches);
  const BlockInput in = block_input(x, scale, shift, relu, strides[0], methods[0], batches);
  return dispatch(x, "shuffle_blocks_stats", [&](auto zero) {
    return run<decltype(zero)>(in, weights, packed, gammas, betas, eps, blocks, batches);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("shuffle_block_stats", &detnas::cpu::shuffle_block_stats);
  m.impl("shuffle_blocks_stats", &detnas::cpu::shuffle_blocks_stats);
}
