// The vector kernels of one instruction set. The including file defines DETNAS_SIMD (namespace),
// DETNAS_VEC_BYTES and DETNAS_GEMM_ROWS, and selects the instruction set beforehand.

namespace detnas {
namespace DETNAS_SIMD {
namespace {

#include "vec.h"

#include "transform.h"

#include "sink.h"

#include "gemm.h"

#include "winograd.h"

#include "ring.h"

#include "depthwise_pairs.h"

#include "depthwise.h"

#include "pixelwise.h"

#include "roi_align.h"

template <typename T>
Kernels<T> make_kernels(const char* name) {
  Kernels<T> k;
  k.stats_channels_last = stats_channels_last<T>;
  k.stats_plane = stats_plane<T>;
  k.pack_matrix = pack_matrix<T>;
  k.fold_matrix = fold_matrix<T>;
  k.read = read_pixels<T>;
  k.gemm = gemm<T>;
  k.gemm_grad_weight = gemm_grad_weight<T>;
  k.winograd_weights = winograd_weights<T>;
  k.winograd_input = winograd_input<T>;
  k.winograd_products = winograd_products<T>;
  k.winograd_output = winograd_output<T>;
  k.depthwise = depthwise<T>;
  k.depthwise_grad_input = depthwise_grad_input<T>;
  k.depthwise_grad_weight = depthwise_grad_weight<T>;
  k.shuffle = shuffle<T>;
  k.shuffle_backward = shuffle_backward<T>;
  k.mixed_sum = mixed_sum<T>;
  k.mixed_sum_backward = mixed_sum_backward<T>;
  k.roi_align = roi_align<T>;
  k.name = name;
  return k;
}

}  // namespace
}  // namespace DETNAS_SIMD
}  // namespace detnas
