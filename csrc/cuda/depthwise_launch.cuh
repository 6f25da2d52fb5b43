// The launch that all depthwise kernels have in common.
#pragma once
#include "depthwise_plan.cuh"

namespace detnas {
namespace cuda {

// One launch for all entries, or for the batches of one; bytes(entry): its shared memory; lanes: threads
// along channels. A kernel that knows the size of its taps for an entry alone, `mixed` for several.
template <typename S, typename F>
void launch_batch(const DepthwiseBatch<S>& batch, void (*k3)(const Depthwise<S>),
                  void (*k5)(const Depthwise<S>), void (*k7)(const Depthwise<S>),
                  void (*mixed)(const DepthwiseBatch<S>), const F& bytes, int lanes, Stream stream,
                  int64_t batches = 1) {
  int64_t blocks = 0, shared = 0;
  for (int e = 0; e < batch.count; ++e) {
    const int64_t needed = bytes(batch.entry[e]);
    blocks += batch.entry[e].slabs * batch.entry[e].rows;
    shared = needed > shared ? needed : shared;
  }
  if (batch.count == 1) {
    const Depthwise<S>& a = batch.entry[0];
    auto kernel = a.kernel == 3 ? k3 : a.kernel == 5 ? k5 : k7;
    DETNAS_LAUNCH(kernel, dim3(blocks, 1, batches), dim3(lanes, kRows), shared, stream, a);
  } else {
    DETNAS_LAUNCH(mixed, dim3(blocks), dim3(lanes, kRows), shared, stream, batch);
  }
}

}  // namespace cuda
}  // namespace detnas
