// Memory of counters. PyTorch's allocator would make it part of a graph's memory, of which nothing may be
// left when a capture ends.
#include "tickets.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "platform.cuh"

#ifdef DETNAS_EMULATE
#include "cuda_torch_emulator.h"
#else
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace detnas {
namespace cuda {
namespace {

constexpr int64_t kArena = 1 << 16, kLeast = 64;  // counters

#ifndef DETNAS_EMULATE
// Zeroed memory of the current device that is never freed: allowed, and no part of it, in a capture too.
unsigned* zeroed(int64_t size) {
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  C10_CUDA_CHECK(cudaMalloc(&memory, size * sizeof(unsigned)));
  C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  C10_CUDA_CHECK(cudaMemsetAsync(memory, 0, size * sizeof(unsigned), stream));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));  // of this memory alone, once for many streams and graphs
  C10_CUDA_CHECK(cudaStreamDestroy(stream));
  return static_cast<unsigned*>(memory);
}

// The capture that the stream is part of, or 0.
unsigned long long capture_of(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &capture));
  return status == cudaStreamCaptureStatusNone ? 0 : capture;
}
#endif

struct Counters {
  unsigned* data = nullptr;
  int64_t size = 0;
};

// Counters of one device, handed out and never taken back: a graph keeps its for ever.
class Arena {
 public:
  Counters take(int64_t size) {
    if (rest_.size < size) {
      rest_.size = std::max(kArena, size);
      rest_.data = zeroed(rest_.size);
    }
    const Counters taken{rest_.data, size};
    rest_.data += size;
    rest_.size -= size;
    return taken;
  }

 private:
  Counters rest_;
};

// Of a stream: for launches on it, and for the graph that was captured from it last.
struct OfStream {
  Counters own, graph;
  unsigned long long capture = 0;
};

}  // namespace

unsigned* tickets(int64_t count, const at::Tensor& x) {
  static std::mutex mutex;
  static std::map<int, Arena> arenas;
  static std::map<std::pair<int, Stream>, OfStream> streams;
  const c10::Device device = x.device();
  const c10::cuda::CUDAGuard guard(device);
  const Stream stream = at::cuda::getCurrentCUDAStream();
  const unsigned long long capture = capture_of(stream);
  const std::lock_guard<std::mutex> lock(mutex);
  OfStream& of = streams[{device.index(), stream}];
  Counters& held = capture ? of.graph : of.own;
  if (held.size < count || (capture && of.capture != capture)) {
    held = arenas[device.index()].take(ceil_div(std::max(count, kLeast), kLeast) * kLeast);
    if (capture) of.capture = capture;
  }
  return held.data;
}

}  // namespace cuda
}  // namespace detnas
