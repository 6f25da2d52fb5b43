// shuffle_block_stats on the CPU: what csrc/shuffle_block_stats.cpp makes of operators, to the bit, with their
// kernels and no tensors between the layers: large allocations cost page faults, and small ones add up.
#include <torch/library.h>

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

// What a block needs besides its results: three maps, of which a layer reads one, makes one and leaves alone what
// the main branch has made, and what is pending on them.
template <typename T>
struct Memory {
  Buffer<T> maps[3], vectors[3];
  Partials<T> partials;

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
    if ((maps[0].size() + maps[1].size() + maps[2].size()) * sizeof(T) <= kKept) return;
    for (Buffer<T>& map : maps) map = Buffer<T>();
  }
};

// The layers of a block on one of its batches.
template <typename T>
struct Layers {
  Memory<T>& memory;
  at::TensorList weights, gammas, betas;
  at::ArrayRef<double> eps;
  const std::vector<Tensor>&counts, &means, &m2s;
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
    else if (spatial) depthwise(x, w, stride, y, sink);
    else product(x, w, pixels, sink);

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

  void depthwise(const Pending<T>& x, const Tensor& w, int64_t stride, const Pending<T>& y, const Sink<T>& sink) {
    T* packed = workspace<T, 1>(packed_depthwise_size(w));
    pack_depthwise<T>(w, packed);
    DepthwiseArgs<T> args;
    args.source = x.source;
    args.sink = sink;
    args.w = packed;
    args.channels = x.channels;
    args.height = x.height;
    args.width = x.width;
    args.out_height = y.height;
    args.out_width = y.width;
    args.kernel = w.size(2);
    args.stride = stride;
    memory.partials.reset(band_tasks(images, x.channels, y.height), x.channels);
    convolve_depthwise(args, images, &memory.partials);
  }

  void product(const Pending<T>& x, const Tensor& weight, int64_t pixels, const Sink<T>& sink) {
    const Tensor w = weight.contiguous();
    GemmArgs<T> args;
    args.source = x.source;
    args.sink = sink;
    args.n = w.size(0);
    args.k = w.size(1);
    T* packed = workspace<T, 1>(packed_size<T>(args.n, args.k));
    pack<T>(w.const_data_ptr<T>(), args.k, 1, args.n, args.k, packed);
    args.packed = packed;
    memory.partials.reset(ceil_div(pixels, task_rows(pixels)), args.n);
    multiply(args, pixels, &memory.partials);
  }
};

template <typename T>
BlockStats run(const Tensor& left, const OptTensor& right, const OptTensor& scale, const OptTensor& shift, bool relu,
               at::TensorList weights, at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
               int64_t kernel, int64_t stride, int64_t out_method, int64_t batches) {
  thread_local Memory<T> memory;
  const size_t main = main_layers(kernel), count = block_layers(kernel, stride);
  std::vector<Tensor> counts, means, m2s;
  const auto options = left.options().memory_format(at::MemoryFormat::Contiguous);
  for (const Tensor& w : weights) {
    const int64_t c = w.size(0), shape[] = {batches, c};
    const at::IntArrayRef sizes(batches == 1 ? shape + 1 : shape, batches == 1 ? 1 : 2);
    counts.push_back(at::empty({}, options.dtype(at::kDouble)));
    means.push_back(at::empty(sizes, options));
    m2s.push_back(at::empty(sizes, options));
  }
  ShuffleArgs<T> shuffle;
  shuffle.method = static_cast<int>(out_method);
  shuffle.c_left = right ? left.size(1) : weights[count - 1].size(0);
  shuffle.c_right = weights[main - 1].size(0);
  const int64_t channels = shuffle.c_left + shuffle.c_right, half = channels / 2;
  const int64_t height = conv_out(left.size(2), stride), width = conv_out(left.size(3), stride);
  const int64_t images = left.size(0) / batches, pixels = images * height * width;
  const bool split = out_method != 0;
  shuffle.c_out_left = half;
  shuffle.ld_out_left = split ? half : channels;
  shuffle.ld_out_right = split ? channels - half : channels;
  const Tensor a = empty_map(left.size(0), shuffle.ld_out_left, height, width, left);
  const Tensor b = split ? empty_map(left.size(0), channels - half, height, width, left)
                         : at::empty({0}, left.options());

  for (int64_t i = 0; i < batches; ++i) {
    const auto map_of = [&](const Tensor& x) { return as_map<T>(batches == 1 ? x : batch_of(x, batches, i), true); };
    const auto vector = [&](const OptTensor& v) { return Padded<T>(batches == 1 ? v : vector_of(v, i)); };
    Layers<T> layers{memory, weights, gammas, betas, eps, counts, means, m2s, i, images};
    const Map<T> l = map_of(left), r = right ? map_of(*right) : l;
    const Padded<T> given_scale = vector(scale), given_shift = vector(shift);
    Pending<T> passing{l.source(), l.c, l.h, l.w};
    passing.source.scale = given_scale.get();
    passing.source.shift = given_shift.get();
    passing.source.relu = relu;
    const Pending<T> made =
        layers.run(right ? Pending<T>{r.source(), r.c, r.h, r.w} : passing, 0, main, stride, 0, 1);
    if (!right) passing = layers.run(passing, main, count, stride, 1, 2);
    if (pixels == 0) continue;
    shuffle.left = passing.source;
    shuffle.right = made.source;
    shuffle.out_left = a.data_ptr<T>() + i * pixels * shuffle.ld_out_left;
    shuffle.out_right = split ? b.data_ptr<T>() + i * pixels * shuffle.ld_out_right : shuffle.out_left + half;
    for_tasks(pixels, task_rows(pixels), [&](int64_t, int64_t begin, int64_t end) {
      kernels<T>().shuffle(shuffle, begin, end, workspace<T>(shuffle_workspace(channels)));
    });
  }
  memory.shrink();
  return {a, b, std::move(counts), std::move(means), std::move(m2s)};
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

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) { m.impl("shuffle_block_stats", &detnas::cpu::shuffle_block_stats); }
