// conv3x3 on the CPU: Winograd's F(4x4, 3x3) on the products of 1x1 convolutions.
#include <torch/library.h>

#include <array>

#include "conv.h"

namespace detnas {
namespace cpu {
namespace {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Tiles of a task, whole tiles of the product: their matrices are to stay near the second-level cache. Weights
// are read once for all of them, so more where those come from memory.
constexpr int64_t kWeightsInCache = 16 << 20;  // bytes
int64_t tiles_per_task(int64_t weights) {
  return weights > kWeightsInCache ? 2 * kGemmTile / 3 : kGemmTile / 3;
}

template <typename T>
int64_t tiles_of(const Map<T>& map) {
  return map.n * ceil_div(map.h, kTileSize) * ceil_div(map.w, kTileSize);
}

// The weights (n, k, 3, 3) as the products of all points want them.
template <typename T>
void pack_points(const Tensor& weight, T* packed) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const Tensor w = weight.contiguous();
  T* taps = workspace<T, 3>(9 * packed_size<T>(n, k));
  pack<T>(w.const_data_ptr<T>(), 9 * k, 1, n, 9 * k, taps);
  kernels<T>().winograd_weights(taps, n, k, packed);
}

// The convolution of maps, whose tiles the tasks take one after the other. Statistics: of one map.
template <typename T>
void convolve(const std::vector<Map<T>>& maps, const std::vector<T*>& outs, const T* packed, int64_t n,
              const Sink<T>& sink, int64_t per_task, Partials<T>* partials) {
  const int64_t k = maps[0].c;
  std::vector<int64_t> first{0};  // tile of each map
  for (const Map<T>& map : maps) first.push_back(first.back() + tiles_of(map));
  const Buffer<T> zeros(round_up(k, kChannelPad));

  WinogradArgs<T> args;
  args.zeros = zeros.data();
  args.sink = sink;
  args.sink.ld = n;
  args.channels = k;
  args.out_channels = n;
  args.packed = packed;
  // A line more than needed: neither rows nor maps share a set of the cache.
  args.ld_in = round_up(k, kChannelPad) + kChannelPad;
  args.ld_out = round_up(n, kChannelPad) + kChannelPad;
  args.map_in = per_task * args.ld_in + kChannelPad;
  args.map_out = per_task * args.ld_out + kChannelPad;
  for_tasks(first.back(), per_task, [&](int64_t t, int64_t begin, int64_t end) {
    WinogradArgs<T> mine = args;
    std::array<int64_t, kPoints> rows{};
    mine.rows = rows.data();
    mine.in = workspace<T, 2>(kPoints * (args.map_in + args.map_out));
    mine.out = mine.in + kPoints * args.map_in;
    if (partials) {
      mine.sink.ref = partials->ref(t);
      mine.sink.sum = partials->first(t);
      mine.sink.sum_sq = partials->second(t);
    }
    auto for_maps = [&](auto&& f) {
      for (size_t m = 0; m < maps.size(); ++m) {
        const int64_t from = std::max(begin, first[m]), to = std::min(end, first[m + 1]);
        if (from >= to) continue;
        mine.x = maps[m].data;
        mine.ld = maps[m].ld;
        mine.height = maps[m].h;
        mine.width = maps[m].w;
        mine.sink.out = outs[m];
        f(from - first[m], to - first[m]);
      }
    };
    for_maps([&](int64_t from, int64_t to) { kernels<T>().winograd_input(mine, from, to); });
    kernels<T>().winograd_products(mine);
    rows.fill(0);
    int64_t pixels = 0;
    for_maps([&](int64_t from, int64_t to) { pixels += kernels<T>().winograd_output(mine, from, to); });
    if (partials) partials->set_count(t, pixels);
  });
}

template <typename T>
ConvResult forward(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool out_relu,
                   bool want_stats) {
  const Map<T> map = as_map<T>(x);
  const int64_t n = weight.size(0), size = kPoints * packed_size<T>(n, map.c);
  Tensor y = empty_map(map.n, n, map.h, map.w, x);
  const int64_t tiles = tiles_of(map), per_task = tiles_per_task(size * static_cast<int64_t>(sizeof(T)));
  Partials<T> partials(want_stats ? ceil_div(tiles, per_task) : 0, n);
  const Padded<T> pb(bias);
  T* packed = workspace<T, 1>(size);
  if (tiles > 0) pack_points<T>(weight, packed);
  Sink<T> sink;
  sink.bias = pb.get();
  sink.relu = out_relu;
  convolve<T>({map}, {y.data_ptr<T>()}, packed, n, sink, per_task, want_stats ? &partials : nullptr);
  auto [count, mean, m2] = want_stats ? make_stats(partials, x, n, map.pixels()) : no_stats(x);
  return {y, count, mean, m2};
}

ConvResult conv3x3(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool out_relu,
                   bool want_stats) {
  check_conv3x3(x, weight, bias, out_relu, want_stats);
  if (is_reduced(x)) {
    auto [y, count, mean, m2] =
        conv3x3(x.to(at::kFloat), weight.to(at::kFloat), bias, out_relu, want_stats);
    return {y.to(x.scalar_type()), count, mean, m2};
  }
  return dispatch(x, "conv3x3", [&](auto zero) {
    return forward<decltype(zero)>(x, weight, bias, out_relu, want_stats);
  });
}

Tensor pack_conv3x3(const Tensor& weight) {
  check_pack_conv3x3(weight);
  const Tensor w = is_reduced(weight) ? weight.to(at::kFloat) : weight;
  Tensor out = at::empty({kPoints, ceil_div(w.size(0), kPanel), w.size(1), kPanel},
                         w.options().memory_format(at::MemoryFormat::Contiguous));
  if (out.numel() > 0)
    dispatch(w, "pack_conv3x3", [&](auto zero) {
      using T = decltype(zero);
      pack_points<T>(w, out.data_ptr<T>());
    });
  return out;
}

std::vector<Tensor> conv3x3_packed(at::TensorList xs, const Tensor& weight, const Tensor& packed,
                                   const OptTensor& bias, bool out_relu) {
  check_packed_conv3x3(xs, weight, packed, bias);
  std::vector<Tensor> ys;
  if (is_reduced(weight)) {
    std::vector<Tensor> wide;
    for (const Tensor& x : xs) wide.push_back(x.to(at::kFloat));
    for (const Tensor& y : conv3x3_packed(wide, weight.to(at::kFloat), packed, bias, out_relu))
      ys.push_back(y.to(weight.scalar_type()));
    return ys;
  }
  const int64_t n = weight.size(0);
  for (const Tensor& x : xs) ys.push_back(empty_map(x.size(0), n, x.size(2), x.size(3), x));
  dispatch(weight, "conv3x3_packed", [&](auto zero) {
    using T = decltype(zero);
    std::vector<Map<T>> maps;
    std::vector<T*> outs;
    for (const Tensor& x : xs) maps.push_back(as_map<T>(x));
    for (const Tensor& y : ys) outs.push_back(y.data_ptr<T>());
    const Padded<T> pb(bias);
    Sink<T> sink;
    sink.bias = pb.get();
    sink.relu = out_relu;
    const int64_t per_task = tiles_per_task(static_cast<int64_t>(packed.nbytes()));
    convolve<T>(maps, outs, packed.const_data_ptr<T>(), n, sink, per_task, nullptr);
  });
  return ys;
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("conv3x3", &detnas::cpu::conv3x3);
  m.impl("conv3x3_packed", &detnas::cpu::conv3x3_packed);
  m.impl("pack_conv3x3", &detnas::cpu::pack_conv3x3);
}
