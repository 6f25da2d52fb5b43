// What the operators' entry points use of CUDA through torch, on the host: one device, one stream.
#pragma once
#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <cstdlib>

#define C10_CUDA_KERNEL_LAUNCH_CHECK()
#define C10_CUDA_CHECK(call) call

struct cudaFuncAttributes {
  int ptxVersion;
};
template <typename F>
void cudaFuncGetAttributes(cudaFuncAttributes* attributes, F) {
  attributes->ptxVersion = 90;
}

namespace c10 {
namespace cuda {
struct CUDAGuard {
  explicit CUDAGuard(Device) {}
};
}  // namespace cuda
}  // namespace c10

namespace at {
namespace cuda {
struct DeviceProperties {
  int major = 9, minor = 0;
};
inline const DeviceProperties* getCurrentDeviceProperties() {
  static const DeviceProperties properties;
  return &properties;
}
inline int getCurrentCUDAStream() { return 0; }
}  // namespace cuda
}  // namespace at

// What csrc/cuda/tickets.cpp has of the device's memory and of captures.
namespace detnas {
namespace cuda {
inline unsigned* zeroed(int64_t size) {
  return static_cast<unsigned*>(std::calloc(static_cast<size_t>(size), sizeof(unsigned)));
}
inline unsigned long long capture_of(int) { return 0; }
}  // namespace cuda
}  // namespace detnas
