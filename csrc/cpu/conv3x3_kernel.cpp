// conv3x3 on the CPU: Winograd's F(4x4, 3x3) on the products of 1x1 convolutions.
#include <torch/library.h>

#include "conv.h"

namespace detnas {
namespace cpu {
namespace {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Tiles of a task, whole tiles of the product: their matrices are of about the cache's size, and
// weights are read once for all of them. Fewer where there would be few tasks.
int64_t tiles_per_task(int64_t tiles) { return tiles > 24 * kGemmTile / 2 ? kGemmTile : kGemmTile / 2; }

template <typename T>
ConvResult forward(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool out_relu,
                   bool want_stats) {
  const Map<T> map = as_map<T>(x);
  const int64_t n = weight.size(0), k = weight.size(1);
  Tensor y = empty_map(map.n, n, map.h, map.w, x);
  const int64_t tiles = map.n * ceil_div(map.h, kTileSize) * ceil_div(map.w, kTileSize);
  const int64_t per_task = tiles_per_task(tiles);
  Partials<T> partials(want_stats ? ceil_div(tiles, per_task) : 0, n);
  const Padded<T> pb(bias);
  const int64_t size = packed_size<T>(n, k);
  T* packed = workspace<T, 1>(kPoints * size);
  if (tiles > 0) {
    const Tensor w = weight.contiguous();
    T* taps = workspace<T, 3>(9 * size);
    pack<T>(w.const_data_ptr<T>(), 9 * k, 1, n, 9 * k, taps);
    kernels<T>().winograd_weights(taps, n, k, packed);
  }
  const Buffer<T> zeros(round_up(k, kChannelPad));

  WinogradArgs<T> args;
  args.x = map.data;
  args.ld = map.ld;
  args.zeros = zeros.data();
  args.sink.out = y.data_ptr<T>();
  args.sink.ld = n;
  args.sink.bias = pb.get();
  args.sink.relu = out_relu;
  args.channels = k;
  args.out_channels = n;
  args.height = map.h;
  args.width = map.w;
  // A line more than needed: neither rows nor maps share a set of the cache.
  args.ld_in = round_up(k, kChannelPad) + kChannelPad;
  args.ld_out = round_up(n, kChannelPad) + kChannelPad;
  args.map_in = per_task * args.ld_in + kChannelPad;
  args.map_out = per_task * args.ld_out + kChannelPad;
  for_tasks(tiles, per_task, [&](int64_t t, int64_t begin, int64_t end) {
    WinogradArgs<T> mine = args;
    mine.in = workspace<T, 2>(kPoints * (args.map_in + args.map_out));
    mine.out = mine.in + kPoints * args.map_in;
    if (want_stats) {
      mine.sink.ref = partials.ref(t);
      mine.sink.sum = partials.first(t);
      mine.sink.sum_sq = partials.second(t);
    }
    kernels<T>().winograd_input(mine, begin, end);
    for (int64_t i = 0; i < kPoints; ++i) {
      GemmArgs<T> product;
      product.source.data = mine.in + i * args.map_in;
      product.source.ld = args.ld_in;
      product.sink.out = mine.out + i * args.map_out;
      product.sink.ld = args.ld_out;
      product.packed = packed + i * size;
      product.n = n;
      product.k = k;
      kernels<T>().gemm(product, 0, end - begin, workspace<T>(gemm_workspace(k)));
    }
    const int64_t pixels = kernels<T>().winograd_output(mine, begin, end);
    if (want_stats) partials.set_count(t, pixels);
  });
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

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) { m.impl("conv3x3", &detnas::cpu::conv3x3); }
