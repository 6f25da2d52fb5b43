// The affine map of a BatchNorm with given statistics, and its gradient; float64 inside.
#pragma once
#include "platform.cuh"

namespace detnas {
namespace cuda {

// Vectors of T; gamma and beta may be null, and the gradient's outputs unwanted ones.
template <typename T>
struct Fold {
  const double* count;
  const T *mean, *m2, *gamma, *beta;
  double eps;
  int channels;
  T *scale, *shift;
  const T *grad_scale, *grad_shift;
  T *grad_mean, *grad_m2, *grad_gamma, *grad_beta;
};

// The affine map of one channel.
template <typename T>
__device__ inline void fold_channel(double count, T mean, T m2, double gamma, double beta, double eps,
                                    T& scale, T& shift) {
  const double factor = gamma / sqrt(m2 / count + eps);
  scale = static_cast<T>(factor);
  shift = static_cast<T>(beta - mean * factor);
}

template <typename T>
__global__ void fold_kernel(Fold<T> a) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= a.channels) return;
  const double gamma = a.gamma ? a.gamma[c] : T(1), beta = a.beta ? a.beta[c] : T(0);
  fold_channel(*a.count, a.mean[c], a.m2[c], gamma, beta, a.eps, a.scale[c], a.shift[c]);
}

template <typename T>
__global__ void fold_grad_kernel(Fold<T> a) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= a.channels) return;
  const double n = *a.count, r = 1 / sqrt(a.m2[c] / n + a.eps), w = a.gamma ? a.gamma[c] : T(1);
  const double d_shift = a.grad_shift[c], d_v = a.grad_scale[c] - d_shift * a.mean[c];
  a.grad_mean[c] = static_cast<T>(-d_shift * w * r);
  a.grad_m2[c] = static_cast<T>(-0.5 * d_v * w * r * r * r / n);
  a.grad_gamma[c] = static_cast<T>(d_v * r);
  a.grad_beta[c] = a.grad_shift[c];
}

template <typename T>
void launch_fold(const Fold<T>& a, Stream stream) {
  auto kernel = a.grad_scale ? &fold_grad_kernel<T> : &fold_kernel<T>;
  DETNAS_LAUNCH(kernel, dim3(ceil_div(a.channels, 128)), dim3(128), 0, stream, a);
}

}  // namespace cuda
}  // namespace detnas
