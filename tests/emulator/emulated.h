// Shared by the C interfaces of the emulated CUDA launchers. dtype: 0 float, 1 half, 2 bfloat16.
// Maps are channels_last; null pointers stand for missing arguments.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cuda/platform.cuh"

using namespace detnas::cuda;

namespace {

template <typename F>
void with_type(int dtype, F&& f) {
  if (dtype == 0) f(float());
  if (dtype == 1) f(c10::Half());
  if (dtype == 2) f(c10::BFloat16());
}

template <typename S>
Source<S> source(const void* data, int64_t ld, const float* scale, const float* shift, int relu) {
  Source<S> s;
  s.data = static_cast<const S*>(data);
  s.ld = ld;
  s.scale = scale;
  s.shift = shift;
  s.relu = relu != 0;
  return s;
}

// grad + add + mul * (y - mean), or masked by y > 0, or grad alone.
template <typename S>
Source<S> gradient(const void* grad, const void* y, const float* add, const float* mul,
                   const float* mean, int channels) {
  Source<S> s = source<S>(grad, channels, nullptr, nullptr, 0);
  s.y = static_cast<const S*>(y);
  s.ld_y = channels;
  s.add = add;
  s.mul = mul;
  s.mean = mean;
  return s;
}

// Exactly as long as asked, so that AddressSanitizer guards its end.
std::unique_ptr<float[]> buffer(int64_t size) { return std::unique_ptr<float[]>(new float[size]); }

}  // namespace

extern "C" void emu_seed(unsigned seed) { emulator::Scheduler::get().seed(seed); }
