// A convolution of a whole map by all threads, with statistics of its result.
#pragma once
#include "conv.h"

namespace detnas {
namespace cpu {

// The product of `args` over `rows` pixels, one at least. What is pending on its input without ReLU moves into the
// matrix and a bias, if that is less work than applying it. `partials`, if any, gets the statistics of the tasks, of
// task_rows(rows) pixels each, from `channel` on.
template <typename T>
void multiply(GemmArgs<T> args, int64_t rows, Partials<T>* partials, int64_t channel = 0) {
  const int64_t n = args.n, k = args.k, per_task = task_rows(rows);
  Source<T>& source = args.source;
  if (source.scale && !source.relu && source.order == Order::kPlain && rows > 2 * n) {
    T *folded = workspace<T, 3>(packed_size<T>(n, k)), *bias = workspace<T, 5>(round_up(n, kPanel));
    std::fill_n(bias, round_up(n, kPanel), T(0));
    if (args.sink.bias) std::copy_n(args.sink.bias, n, bias);
    kernels<T>().fold_matrix(args.packed, n, k, source.scale, source.shift, folded, bias);
    args.packed = folded;
    args.sink.bias = bias;
    source.scale = source.shift = nullptr;
  }
  if (partials)
    for (int64_t t = 0; t * per_task < rows; ++t) partials->set_count(t, std::min(per_task, rows - t * per_task));
  for_products(rows, per_task, n, [&](int64_t t, int64_t begin, int64_t end, int64_t first, int64_t count) {
    GemmArgs<T> mine = args;
    if (partials) {
      mine.sink.ref = partials->ref(t) + channel;
      mine.sink.sum = partials->first(t) + channel;
      mine.sink.sum_sq = partials->second(t) + channel;
    }
    kernels<T>().gemm(of_columns(mine, first, count), begin, end, workspace<T>(gemm_workspace(k)));
  });
}

// The depthwise convolution of `args` over some images, not empty. `partials`, if any, gets the statistics of
// the tasks, band_tasks() of them.
template <typename T>
void convolve_depthwise(const DepthwiseArgs<T>& args, int64_t images, Partials<T>* partials) {
  for_bands(images, args.channels, args.out_height, [&](int64_t n, int64_t c, int64_t t, int64_t r0, int64_t r1) {
    DepthwiseArgs<T> mine = args;
    if (partials) {
      if (c == 0) partials->set_count(t, (r1 - r0) * args.out_width);
      mine.sink.ref = partials->ref(t);
      mine.sink.sum = partials->first(t);
      mine.sink.sum_sq = partials->second(t);
    }
    kernels<T>().depthwise(mine, n, c, r0, r1, workspace<T>(depthwise_workspace(mine)));
  });
}

}  // namespace cpu
}  // namespace detnas
