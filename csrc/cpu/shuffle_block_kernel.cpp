// shuffle_block on the CPU: a whole eval-mode block as chains of convolutions, then the shuffle.
#include <torch/library.h>

#include "chain.h"

namespace detnas {
namespace cpu {
namespace {

template <typename T>
int64_t packed_size_of(const Tensor& w) {
  return w.size(2) > 1 ? packed_depthwise_size(w) : packed_size<T>(w.size(0), w.size(1));
}

// `parted`: channels 0, 2, ... before channels 1, 3, ...
template <typename T>
void pack_layer(const Tensor& weight, T* out, bool parted = false) {
  if (weight.size(2) > 1) return pack_depthwise<T>(weight, out);
  const Tensor w = weight.contiguous();
  const T* data = w.template const_data_ptr<T>();
  const int64_t n = w.size(0), k = w.size(1);
  if (!parted) return pack<T>(data, k, 1, n, k, out);
  for (int64_t odd = 0; odd < 2; ++odd)
    pack<T>(data + odd * k, 2 * k, 1, n / 2, k, out + odd * packed_size<T>(n / 2, k));
}

struct Block {
  std::vector<int64_t> out_channels;  // of the layers
  int64_t kernel, stride;
};
Block block_of(at::TensorList biases, int64_t kernel, int64_t stride) {
  Block b{{}, kernel, stride};
  for (const Tensor& bias : biases) b.out_channels.push_back(bias.size(0));
  return b;
}

// Layers first, first + 1, ... (count of them), without weights and biases.
template <typename T>
Chain<T> make_chain(const Block& b, size_t first, size_t count, int64_t channels, int64_t height, int64_t width) {
  Chain<T> chain;
  int64_t stride = b.stride;
  for (size_t i = first; i < first + count; ++i) {
    Stage<T> s;
    s.depthwise = is_depthwise(b.kernel, i);
    s.kernel = s.depthwise ? std::max<int64_t>(b.kernel, 3) : 1;
    s.in_channels = channels;
    s.out_channels = b.out_channels[i];
    s.relu = !s.depthwise;
    if (s.depthwise) std::swap(s.stride, stride);  // the first one strides
    s.in_height = height;
    s.in_width = width;
    height = s.out_height = conv_out(height, s.stride);
    width = s.out_width = conv_out(width, s.stride);
    channels = s.out_channels;
    chain.stages.push_back(std::move(s));
  }
  return chain;
}

// The branches of a block; at stride 1 the projection has no stages.
template <typename T>
struct Branches {
  Chain<T> main, projection;

  Branches(const Block& b, int64_t channels_left, int64_t channels_right, int64_t height, int64_t width)
      : main(make_chain<T>(b, 0, main_layers(b.kernel), channels_right, height, width)) {
    if (b.stride == 2) projection = make_chain<T>(b, main.stages.size(), 2, channels_left, height, width);
  }

  // `weights`: packed; `parted`: those of branches' last stages.
  void set(const std::vector<const T*>& weights, at::TensorList biases, bool parted) {
    size_t i = 0;
    for (Chain<T>* chain : {&main, &projection})
      for (Stage<T>& s : chain->stages) {
        s.weight = weights[i];
        const Tensor& bias = biases[i++];
        const bool part = parted && &s == &chain->stages.back();
        s.bias = Padded<T>(OptTensor(part ? bias.reshape({-1, 2}).t().reshape({-1}) : bias));
      }
  }

  int64_t height() const { return main.last().out_height; }
  int64_t work(int64_t begin, int64_t end) const { return main.work(begin, end) + projection.work(begin, end); }

  // Ranges of rows for each image, so that all threads have one; and the rows of one.
  int64_t parts(int64_t images, int64_t threads) const {
    return std::min(height(), std::max<int64_t>(ceil_div(threads, images), 1));
  }
  int64_t rows(int64_t parts) const { return ceil_div(height(), parts); }
  // The most multiply-adds of such a range.
  int64_t longest(int64_t parts) const {
    int64_t most = 0;
    for (int64_t r = 0; r < height(); r += rows(parts))
      most = std::max(most, work(r, std::min(height(), r + rows(parts))));
    return most;
  }
  // Whether threads are to share every stage, as ranges take longer by more than an eighth: what one core has
  // made another has to fetch.
  bool together(int64_t parts) const { return parts > 1 && 8 * longest(parts) * parts > 9 * work(0, height()); }
};

// Where a block's output goes.
template <typename T>
struct Outputs {
  Output<T> main, projection;  // of the branches, where nothing is left to shuffle in them
  bool direct = false;         // they are
  ShuffleArgs<T> shuffle;      // of what is left
  bool any = false;            // something is
};

// The block with all threads at one stage after the other.
template <typename T>
void run_together(const Branches<T>& branches, const Outputs<T>& outputs, int64_t images) {
  thread_local Buffer<T> memory[2], main_out, projection_out;  // kept: large allocations cost page faults
#if defined(DETNAS_D2_CHECKED)
  memory[0] = memory[1] = main_out = projection_out = Buffer<T>();
#endif
  const bool strided = !branches.projection.stages.empty();
  const int64_t pixels = images * branches.height() * branches.main.last().out_width;
  ShuffleArgs<T> shuffle = outputs.shuffle;
  if (outputs.direct) {
    branches.main.make_together(memory, images, outputs.main);
    if (strided) branches.projection.make_together(memory, images, outputs.projection);
  } else {
    auto made = [&](const Chain<T>& chain, Buffer<T>& out) {
      Source<T> source;
      source.ld = chain.last().out_channels;
      grow(out, pixels * source.ld + kChannelPad);
      chain.make_together(memory, images, {out.data(), source.ld});
      source.data = out.data();
      return source;
    };
    shuffle.right = made(branches.main, main_out);
    if (strided) shuffle.left = made(branches.projection, projection_out);
  }
  if (!outputs.any) return;
  for_tasks(pixels, task_rows(pixels), [&](int64_t, int64_t begin, int64_t end) {
    kernels<T>().shuffle(shuffle, begin, end, workspace<T>(shuffle_workspace(shuffle.c_left + shuffle.c_right)));
  });
}

// left, right: what the branches read, `like` giving batch and size, `channels` of each; at stride 1
// the left one passes as it is. out_method 0: concatenated, else shuffled and split. `parted`: with method 2, weights
// are packed so that branches leave channels 0, 2, ... in one half and 1, 3, ... in the other.
template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& like, const Source<T>& left, const Source<T>& right,
                               int64_t channels_left, int64_t channels_right,
                               const std::vector<const T*>& weights, at::TensorList biases, int64_t kernel,
                               int64_t stride, int64_t out_method, bool parted) {
  const int64_t n = like.size(0);
  const Block b = block_of(biases, kernel, stride);
  Branches<T> branches(b, channels_left, channels_right, like.size(2), like.size(3));
  branches.set(weights, biases, parted);
  Chain<T>&chain = branches.main, &projection = branches.projection;
  chain.input = right;
  projection.input = left;
  const int64_t oh = chain.last().out_height, ow = chain.last().out_width;
  const int64_t c_left = b.stride == 1 ? channels_left : projection.last().out_channels;
  const int64_t c_right = chain.last().out_channels, c_out = c_left + c_right, half = c_out / 2;
  const bool joined = out_method == 0;
  Tensor a = empty_map(n, joined ? c_out : half, oh, ow, like);
  Tensor second = joined ? at::empty({0}, like.options()) : empty_map(n, c_out - half, oh, ow, like);
  if (a.numel() == 0) return {a, second};

  Outputs<T> outputs;
  T *first_half = a.data_ptr<T>(), *second_half = joined ? nullptr : second.data_ptr<T>();
  outputs.direct = joined || parted;
  outputs.any = !outputs.direct || b.stride == 1;
  if (joined) {
    outputs.main = {first_half + c_left, c_out};
    outputs.projection = {first_half, c_out};
  } else if (parted) {
    outputs.main = {first_half + c_left / 2, half, second_half + c_left / 2, c_right / 2};
    outputs.projection = {first_half, half, second_half, c_left / 2};
  }
  ShuffleArgs<T>& shuffle = outputs.shuffle;
  shuffle.method = static_cast<int>(out_method);
  shuffle.c_left = c_left;
  shuffle.c_right = outputs.direct ? 0 : c_right;
  shuffle.c_out_left = joined ? c_left : parted ? c_left / 2 : half;
  shuffle.left = left;
  shuffle.out_left = first_half;
  shuffle.out_right = joined ? first_half + c_left : second_half;
  shuffle.ld_out_left = joined ? c_out : half;
  shuffle.ld_out_right = joined ? c_out : c_out - half;

  // Results do not depend on the cut, so it may follow the number of threads.
  const int64_t parts = branches.parts(n, at::get_num_threads()), rows = branches.rows(parts);
  if (branches.together(parts)) {
    run_together(branches, outputs, n);
    return {a, second};
  }
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
        auto made = [&](const Chain<T>& of, std::vector<Rows<T>>& kept, Buffer<T>& out, int64_t c) {
          const int64_t size = pixels * c + kChannelPad;
#if defined(DETNAS_D2_CHECKED)
          out = Buffer<T>(size, std::numeric_limits<T>::quiet_NaN());
#endif
          grow(out, size);
          of.make(kept, image, r, until, {out.data(), c});
          Source<T> source;
          source.data = out.data() - p0 * c;
          source.ld = c;
          return source;
        };
        if (outputs.direct) {
          chain.make(main_rows, image, r, until, outputs.main.at(p0));
          if (b.stride == 2) projection.make(projection_rows, image, r, until, outputs.projection.at(p0));
        } else {
          if (b.stride == 2) s.left = made(projection, projection_rows, projection_out, c_left);
          s.right = made(chain, main_rows, main_out, c_right);
        }
        if (outputs.any) kernels<T>().shuffle(s, p0, p1, workspace<T>(shuffle_workspace(s.c_left + s.c_right)));
      }
    }
  });
  return {a, second};
}

std::vector<Tensor> floats(at::TensorList list) {
  std::vector<Tensor> out;
  for (const Tensor& t : list) out.push_back(t.to(at::kFloat));
  return out;
}

std::vector<Tensor> pack_shuffle_block(at::TensorList weights, int64_t kernel, int64_t stride, int64_t out_method) {
  check_pack_block(weights, kernel, stride);
  check_out_method(out_method);
  const bool parted = are_parted(weights, kernel, out_method);
  std::vector<Tensor> packed;
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool part = parted && is_last_layer(i, weights.size(), kernel);
    const Tensor& given = weights[i];
    const Tensor w = is_reduced(given) ? given.to(at::kFloat) : given;
    const int64_t depth = w.size(2) > 1 ? w.size(2) * w.size(3) : w.size(1);
    Tensor out = at::empty({ceil_div(w.size(0), kPanel), depth, kPanel},
                           w.options().memory_format(at::MemoryFormat::Contiguous));
    dispatch(w, "pack_shuffle_block", [&](auto zero) {
      using T = decltype(zero);
      pack_layer<T>(w, out.data_ptr<T>(), part);
    });
    packed.push_back(part ? out.view({2, -1, out.size(1), kPanel}) : std::move(out));
  }
  return packed;
}

std::tuple<Tensor, Tensor> shuffle_block_packed(const Tensor& x, const OptTensor& right,
                                                at::TensorList weights, at::TensorList packed,
                                                at::TensorList biases, int64_t kernel, int64_t stride,
                                                int64_t method, int64_t out_method) {
  check_packed_block(x, right, weights, packed, biases, kernel, stride, method, out_method);
  const bool parted = are_parted(weights, kernel, out_method);
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
    if (halve) std::tie(first, second) = shuffled_halves(first, map.c, method);
    std::vector<const T*> pointers;
    for (const Tensor& t : packed) pointers.push_back(t.const_data_ptr<T>());
    return run<T>(map.tensor, first, second, halve ? map.c / 2 : map.c, halve ? map.c / 2 : other.c,
                  pointers, biases, kernel, stride, out_method, parted);
  });
}

template <typename T>
Tensor forward(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
               int64_t stride, int64_t method) {
  const Map<T> map = as_map<T>(x);
  Source<T> left = map.source(), right = left;
  if (stride == 1) std::tie(left, right) = shuffled_halves(left, map.c, method);
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
  return std::get<0>(run<T>(map.tensor, left, right, channels, channels, packed, biases, kernel, stride, 0, false));
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

// What bounds the speed-up of a block of one image by threads, told to tests: its multiply-adds against those
// of the thread that has the most.
double block_speedup(at::IntArrayRef out_channels, int64_t channels_left, int64_t channels_right, int64_t height,
                     int64_t width, int64_t kernel, int64_t stride, int64_t threads) {
  const Branches<float> branches({out_channels.vec(), kernel, stride}, channels_left, channels_right, height, width);
  const double whole = static_cast<double>(branches.work(0, branches.height()));
  const int64_t parts = branches.parts(1, threads);
  if (!branches.together(parts)) return whole / static_cast<double>(branches.longest(parts));
  double longest = 0;
  for (const Chain<float>* chain : {&branches.main, &branches.projection})
    for (const Stage<float>& s : chain->stages) {
      const int64_t tasks = s.tasks(1, threads);
      longest += static_cast<double>(s.work(s.out_height) * ceil_div(tasks, threads)) / static_cast<double>(tasks);
    }
  return whole / longest;
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_FRAGMENT(detnas_d2, m) {
  m.def(
      "cpu_block_speedup(int[] out_channels, int channels_left, int channels_right, int height, int width, "
      "int kernel, int stride, int threads) -> float",
      &detnas::cpu::block_speedup);
}

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("pack_shuffle_block", &detnas::cpu::pack_shuffle_block);
  m.impl("shuffle_block", &detnas::cpu::shuffle_block);
  m.impl("shuffle_block_packed", &detnas::cpu::shuffle_block_packed);
}
