// roi_align on the CPU: regions of the levels of a pyramid, each where it belongs in the result.
#include <torch/library.h>

#include <cmath>

#include "../roi_checks.h"
#include "common.h"

namespace detnas {
namespace cpu {
namespace {

// Samples of a bin in one direction; nothing of more than this is read.
constexpr double kMostSamples = 1 << 15;

template <typename T>
int64_t samples_of(int64_t sampling_ratio, T extent, int64_t size) {
  if (sampling_ratio > 0) return sampling_ratio;
  const double wanted = std::ceil(static_cast<double>(extent) / static_cast<double>(size));
  TORCH_CHECK(wanted <= kMostSamples, "boxes: expected fewer than ", kMostSamples, " samples of a bin");
  return std::max<int64_t>(static_cast<int64_t>(wanted), 0);
}

template <typename T>
RoiArgs<T> region(const Map<T>& map, const T* box, T scale, int64_t size, int64_t sampling_ratio, bool aligned) {
  const T offset = aligned ? T(0.5) : T(0);
  RoiArgs<T> args;
  args.x = map.data + static_cast<int64_t>(box[0]) * map.h * map.w * map.ld;
  args.ld = map.ld;
  args.channels = map.c;
  args.height = map.h;
  args.width = map.w;
  args.start_x = box[1] * scale - offset;
  args.start_y = box[2] * scale - offset;
  T width = box[3] * scale - offset - args.start_x, height = box[4] * scale - offset - args.start_y;
  if (!aligned) {
    width = std::max(width, T(1));
    height = std::max(height, T(1));
  }
  args.size = size;
  args.bin_x = width / static_cast<T>(size);
  args.bin_y = height / static_cast<T>(size);
  args.grid_x = samples_of(sampling_ratio, width, size);
  args.grid_y = samples_of(sampling_ratio, height, size);
  return args;
}

Tensor roi_align(at::TensorList xs, const Tensor& boxes, at::IntArrayRef levels, at::ArrayRef<double> scales,
                 int64_t size, int64_t sampling_ratio, bool aligned) {
  check_roi_align(xs, boxes, levels, scales, size, sampling_ratio);
  if (is_reduced(boxes)) {
    std::vector<Tensor> wide;
    for (const Tensor& x : xs) wide.push_back(x.to(at::kFloat));
    return roi_align(wide, boxes.to(at::kFloat), levels, scales, size, sampling_ratio, aligned)
        .to(boxes.scalar_type());
  }
  Tensor y = empty_map(boxes.size(0), xs[0].size(1), size, size, xs[0]);
  dispatch(boxes, "roi_align", [&](auto zero) {
    using T = decltype(zero);
    std::vector<Map<T>> maps;
    for (const Tensor& x : xs) maps.push_back(as_map<T>(x));
    const Tensor rows = boxes.contiguous();
    const T* box = rows.const_data_ptr<T>();
    T* out = y.data_ptr<T>();
    const int64_t count = boxes.size(0), stride = size * size * xs[0].size(1);
    for (int64_t i = 0; i < count; ++i) {
      const T* b = box + 5 * i;
      for (int64_t j = 0; j < 5; ++j) TORCH_CHECK(std::isfinite(b[j]), "boxes: expected finite values");
      TORCH_CHECK(b[0] >= 0 && static_cast<int64_t>(b[0]) < maps[levels[i]].n,
                  "boxes: expected images of 0 to ", maps[levels[i]].n - 1, ", got ", b[0]);
      samples_of<T>(sampling_ratio, (b[3] - b[1]) * static_cast<T>(scales[levels[i]]), size);
      samples_of<T>(sampling_ratio, (b[4] - b[2]) * static_cast<T>(scales[levels[i]]), size);
    }
    if (y.numel() == 0) return;
    at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t level = levels[i];
        RoiArgs<T> args =
            region(maps[level], box + 5 * i, static_cast<T>(scales[level]), size, sampling_ratio, aligned);
        args.out = out + i * stride;
        if (maps[level].h > 0 && maps[level].w > 0) kernels<T>().roi_align(args);
        else std::fill_n(args.out, stride, T(0));
      }
    });
  });
  return y;
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) { m.impl("roi_align", &detnas::cpu::roi_align); }
