// bn_stats and bn_fold on CUDA, and their gradients.
#include <torch/library.h>

#include "bn_fold.cuh"
#include "bn_stats.cuh"
#include "bn_stats_grad.cuh"
#include "common.cuh"

namespace detnas {
namespace cuda {

void stats_of(at::TensorList maps, const OptTensor& scale, const OptTensor& shift, bool relu, Statistics& statistics) {
  const Tensor& first = maps[0];
  const int64_t channels = first.size(1);
  std::vector<Tensor> held;
  for (const Tensor& x : maps)
    if (x.numel() > 0) held.push_back(as_source(x));
  if (held.empty()) {
    int64_t pixels = 0;  // of no channels
    for (const Tensor& x : maps) pixels += pixel_count(x);
    statistics.of_nothing();
    statistics.count.fill_(static_cast<double>(pixels));
    return;
  }
  DETNAS_DISPATCH(first, "bn_stats", [&] {
    std::vector<StatsInput<scalar_t>> inputs;
    for (const Tensor& x : held)
      inputs.push_back({source<scalar_t>(x, scale, shift, relu), pixel_count(x) / statistics.batches});
    const StatsPlan plan = plan_stats(inputs, static_cast<int>(channels));
    const int64_t slabs = plan.tiling.slabs, batches = statistics.batches;
    const bool several = plan.chunks > 1;
    const Tensor partial = floats(several ? batches * moments_size(plan.chunks, channels, slabs) : 0, first);
    launch_stats(inputs, plan, static_cast<int>(channels), batches, partial.data_ptr<float>(),
                 several ? tickets(batches * slabs, first) : nullptr, statistics.out(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

namespace {

Stats bn_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  check_stats(x, scale, shift);
  const c10::cuda::CUDAGuard guard(x.device());
  Statistics found(x.size(1), x);
  stats_of(x, vector(scale), vector(shift), relu, found);
  return found.stats();
}

Stats bn_stats_list(at::TensorList x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  check_stats(x, scale, shift);
  const c10::cuda::CUDAGuard guard(x[0].device());
  Statistics found(x[0].size(1), x[0]);
  stats_of(x, vector(scale), vector(shift), relu, found);
  return found.stats();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bn_stats_fold(const Tensor& x, const OptTensor& scale,
                                                                 const OptTensor& shift, bool relu,
                                                                 const OptTensor& gamma,
                                                                 const OptTensor& beta, double eps,
                                                                 int64_t batches) {
  check_stats(x, scale, shift, batches);
  check_norm(gamma, beta, x, x.size(1));
  if (batches > 1 && x.numel() == 0)
    return by_batch(batches, [&](int64_t i) {
      return bn_stats_fold(batch_of(x, batches, i), vector_of(scale, i), vector_of(shift, i), relu, gamma, beta,
                           eps, 1);
    });
  const c10::cuda::CUDAGuard guard(x.device());
  Statistics found(x.size(1), x, gamma, beta, eps, batches);
  stats_of(x, vector(scale), vector(shift), relu, found);
  return {found.count, found.mean, found.m2, found.scale, found.shift};
}

std::tuple<Tensor, Tensor, Tensor> bn_stats_backward(const Tensor& grad_mean, const Tensor& grad_m2,
                                                     const Tensor& x_in, const Tensor& mean,
                                                     const OptTensor& scale, const OptTensor& shift,
                                                     bool relu) {
  check_stats_backward(grad_mean, grad_m2, x_in, mean, scale, shift);
  const int64_t c = x_in.size(1), pixels = pixel_count(x_in), wanted = scale ? c : 0;
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_source(x_in), dx = at::empty_like(x_in);  // laid out as x is
  Tensor da = floats(wanted, x), db = floats(wanted, x);
  if (x.numel() == 0) return {dx, da.zero_(), db.zero_()};
  const bool direct = dx.is_contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor out = direct ? dx : empty_map(x.sizes(), x);
  const OptTensor a = vector(scale), b = vector(shift), add = vector(grad_mean), mul = vector(grad_m2),
                  center = vector(mean);
  DETNAS_DISPATCH(x, "bn_stats_backward", [&] {
    Source<scalar_t> s = source<scalar_t>(x, a, b, relu);
    s.add = pointer(add), s.mul = pointer(mul), s.mean = pointer(center);
    s.add_factor = static_cast<float>(1. / static_cast<double>(pixels));
    s.mul_factor = 2.f;
    const StatsGradPlan plan = plan_stats_grad(s, pixels, static_cast<int>(c), out.data_ptr<scalar_t>());
    const Tensor partial = floats(scale ? plan.tiling.chunks * 2 * c : 0, x);
    float* sums[2] = {da.data_ptr<float>(), db.data_ptr<float>()};
    launch_stats_grad(s, plan, pixels, static_cast<int>(c), out.data_ptr<scalar_t>(),
                      scale ? partial.data_ptr<float>() : nullptr, sums, stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!direct) dx.copy_(out);
  return {dx, da, db};
}

// The vectors of a fold in the dtype of the statistics, on their device.
template <typename T>
struct FoldArgs {
  Tensor count, mean, m2, gamma, beta;
  FoldArgs(const Tensor& n, const Tensor& mean_in, const Tensor& m2_in, const OptTensor& gamma_in,
           const OptTensor& beta_in) {
    count = n.to(at::kDouble);
    mean = mean_in.contiguous();
    m2 = wide(m2_in);
    if (gamma_in) gamma = wide(*gamma_in);
    if (beta_in) beta = wide(*beta_in);
  }
  Tensor wide(const Tensor& t) const { return t.to(mean.scalar_type()).contiguous(); }
  Fold<T> get(double eps) const {
    Fold<T> a{};
    a.count = count.const_data_ptr<double>();
    a.mean = mean.const_data_ptr<T>();
    a.m2 = m2.const_data_ptr<T>();
    a.gamma = gamma.defined() ? gamma.const_data_ptr<T>() : nullptr;
    a.beta = beta.defined() ? beta.const_data_ptr<T>() : nullptr;
    a.eps = eps;
    a.channels = static_cast<int>(mean.size(0));
    return a;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> bn_fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                   const OptTensor& gamma, const OptTensor& beta, double eps) {
  check_fold(count, mean, m2, gamma, beta);
  const c10::cuda::CUDAGuard guard(mean.device());
  Tensor scale = at::empty_like(mean, at::MemoryFormat::Contiguous), shift = at::empty_like(scale);
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "bn_fold", [&] {
    const FoldArgs<scalar_t> args(count, mean, m2, gamma, beta);
    Fold<scalar_t> a = args.get(eps);
    if (a.channels == 0) return;
    a.scale = scale.data_ptr<scalar_t>();
    a.shift = shift.data_ptr<scalar_t>();
    launch_fold(a, stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {scale, shift};
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_fold_backward(
    const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& count, const Tensor& mean,
    const Tensor& m2, const OptTensor& gamma, double eps) {
  check_fold_backward(grad_scale, grad_shift, count, mean, m2, gamma);
  const c10::cuda::CUDAGuard guard(mean.device());
  Tensor d_mean = at::empty_like(mean, at::MemoryFormat::Contiguous), d_m2 = at::empty_like(d_mean);
  Tensor d_gamma = at::empty_like(d_mean), d_beta = at::empty_like(d_mean);
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "bn_fold", [&] {
    const FoldArgs<scalar_t> args(count, mean, m2, gamma, {});
    const Tensor gs = args.wide(grad_scale), gb = args.wide(grad_shift);
    Fold<scalar_t> a = args.get(eps);
    if (a.channels == 0) return;
    a.grad_scale = gs.const_data_ptr<scalar_t>();
    a.grad_shift = gb.const_data_ptr<scalar_t>();
    a.grad_mean = d_mean.data_ptr<scalar_t>();
    a.grad_m2 = d_m2.data_ptr<scalar_t>();
    a.grad_gamma = d_gamma.data_ptr<scalar_t>();
    a.grad_beta = d_beta.data_ptr<scalar_t>();
    launch_fold(a, stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {d_mean, d_m2, d_gamma, d_beta};
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("bn_stats", &detnas::cuda::bn_stats);
  m.impl("bn_stats_list", &detnas::cuda::bn_stats_list);
  m.impl("bn_stats_fold", &detnas::cuda::bn_stats_fold);
  m.impl("bn_stats_backward", &detnas::cuda::bn_stats_backward);
  m.impl("bn_fold", &detnas::cuda::bn_fold);
  m.impl("bn_fold_backward", &detnas::cuda::bn_fold_backward);
}
