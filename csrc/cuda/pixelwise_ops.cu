// shuffle_concat and mixed_sum on CUDA; maps through what is pending on them, for the library's convolutions.
#include <torch/library.h>

#include "conv.cuh"
#include "mixed_sum_grad.cuh"
#include "pending.cuh"
#include "shuffle_concat_grad.cuh"

namespace detnas {
namespace cuda {

Tensor materialise(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  if ((!scale && !relu) || x.numel() == 0) return x;
  Tensor out = empty_map(x.sizes(), x);
  DETNAS_DISPATCH(x, "pending", [&] {
    launch_transform(source<scalar_t>(x, scale, shift, relu), pixel_count(x), static_cast<int>(x.size(1)),
                     out.data_ptr<scalar_t>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Tensor materialise(const GradArgs& g) {
  if (!g.y.defined() || g.grad.numel() == 0) return g.grad;
  Tensor out = empty_map(g.grad.sizes(), g.grad);
  DETNAS_DISPATCH(g.grad, "pending", [&] {
    launch_transform(g.get<scalar_t>(), pixel_count(out), static_cast<int>(out.size(1)),
                     out.data_ptr<scalar_t>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

std::tuple<Tensor, Tensor, Tensor> through_pending(const Tensor& grad, const Tensor& x,
                                                   const OptTensor& scale, const OptTensor& shift,
                                                   bool relu) {
  if (!scale && !relu) return {grad, floats(0, x), floats(0, x)};
  const Tensor g = as_map(grad);
  const int64_t c = x.size(1), pixels = pixel_count(x);
  Tensor out = empty_map(x.sizes(), x), d_scale = floats(scale ? c : 0, x), d_shift = floats(scale ? c : 0, x);
  if (x.numel() == 0) return {out, d_scale.zero_(), d_shift.zero_()};
  DETNAS_DISPATCH(x, "pending", [&] {
    AffineGrad<scalar_t> a{};
    a.left = source<scalar_t>(x, scale, shift, relu);
    a.c_left = a.c_out_left = static_cast<int>(c);
    a.grad_left = g.const_data_ptr<scalar_t>();
    a.ld_grad_left = c;
    a.out_left = out.data_ptr<scalar_t>();
    Tensor partial;
    if (scale) {
      partial = floats(affine_grad_tiling(a, pixels).chunks * 2 * c, x);
      a.partial = partial.data_ptr<float>();
    }
    float* const sums[4] = {d_scale.data_ptr<float>(), nullptr, d_shift.data_ptr<float>(), nullptr};
    launch_affine_grad(a, pixels, sums, stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {out, d_scale, d_shift};
}

namespace {

struct Halves {
  Tensor left, right;
  OptTensor ls, lb, rs, rb;
  Halves(const Tensor& l, const Tensor& r, const OptTensor& left_scale, const OptTensor& left_shift,
         const OptTensor& right_scale, const OptTensor& right_shift, int64_t method, bool split,
         int64_t batches = 1) {
    check_shuffle(l, r, left_scale, left_shift, right_scale, right_shift, method, split, batches);
    left = as_source(l);
    right = as_source(r);
    ls = vector(left_scale);
    lb = vector(left_shift);
    rs = vector(right_scale);
    rb = vector(right_shift);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> shuffle_concat(const Tensor& left, const Tensor& right,
                                          const OptTensor& left_scale, const OptTensor& left_shift,
                                          const OptTensor& right_scale, const OptTensor& right_shift,
                                          bool left_relu, bool right_relu, int64_t method, bool split,
                                          int64_t batches) {
  const Halves h(left, right, left_scale, left_shift, right_scale, right_shift, method, split, batches);
  const c10::cuda::CUDAGuard guard(left.device());
  const int64_t n = left.size(0), height = left.size(2), width = left.size(3);
  const int64_t channels = left.size(1) + right.size(1), half = channels / 2;
  Tensor a = empty_map({n, split ? half : channels, height, width}, left);
  Tensor b = split ? empty_map({n, channels - half, height, width}, left) : at::empty({0}, left.options());
  if (a.numel() + b.numel() == 0) return {a, b};
  DETNAS_DISPATCH(left, "shuffle_concat", [&] {
    // Without a split, all channels are the left half.
    Shuffle<scalar_t> s{source<scalar_t>(h.left, h.ls, h.lb, left_relu),
                        source<scalar_t>(h.right, h.rs, h.rb, right_relu),
                        static_cast<int>(left.size(1)), static_cast<int>(right.size(1)),
                        static_cast<int>(method), static_cast<int>(a.size(1)), a.data_ptr<scalar_t>(),
                        split ? b.data_ptr<scalar_t>() : nullptr, a.size(1), channels - half};
    launch_shuffle(s, pixel_count(left) / batches, stream(), batches);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {a, b};
}

void shuffled_halves(const Tensor& x, int64_t method, const Tensor& left, const Tensor& right) {
  const Tensor map = as_map(x);
  const int64_t half = x.size(1) / 2;
  DETNAS_DISPATCH(x, "shuffled_halves", [&] {
    Source<scalar_t> first = source<scalar_t>(map, {}, {}, false), second = first;
    second.data += half;
    Shuffle<scalar_t> s{first, second, static_cast<int>(half), static_cast<int>(half), static_cast<int>(method),
                        static_cast<int>(half), left.data_ptr<scalar_t>(), right.data_ptr<scalar_t>(),
                        pixel_stride(left, 1), half};
    launch_shuffle(s, pixel_count(x), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> shuffle_concat_backward(
    const Tensor& grad_left, const Tensor& grad_right, const Tensor& left, const Tensor& right,
    const OptTensor& left_scale, const OptTensor& left_shift, const OptTensor& right_scale,
    const OptTensor& right_shift, bool left_relu, bool right_relu, int64_t method, bool split) {
  check_shuffle_backward(grad_left, grad_right, left, right, left_scale, left_shift, right_scale, right_shift,
                         method, split);
  const Halves h(left, right, left_scale, left_shift, right_scale, right_shift, method, split);
  const c10::cuda::CUDAGuard guard(left.device());
  const int64_t cl = left.size(1), cr = right.size(1), channels = cl + cr, half = channels / 2;
  const int64_t n = left.size(0), height = left.size(2), width = left.size(3), pixels = pixel_count(left);
  const Tensor ga = as_source(grad_left), gb = split ? as_source(grad_right) : ga;
  Tensor dl = empty_map({n, cl, height, width}, left), dr = empty_map({n, cr, height, width}, left);
  const int64_t sl = left_scale ? cl : 0, sr = right_scale ? cr : 0;
  Tensor sums[4] = {floats(sl, left), floats(sr, left), floats(sl, left), floats(sr, left)};
  if (pixels * channels == 0) {
    for (Tensor& t : sums) t.zero_();
    return {dl, dr, sums[0], sums[2], sums[1], sums[3]};
  }
  DETNAS_DISPATCH(left, "shuffle_concat_backward", [&] {
    AffineGrad<scalar_t> a{};
    a.left = source<scalar_t>(h.left, h.ls, h.lb, left_relu);
    a.right = source<scalar_t>(h.right, h.rs, h.rb, right_relu);
    if (!left_scale && !left_relu) a.left.data = nullptr;
    if (!right_scale && !right_relu) a.right.data = nullptr;
    a.c_left = static_cast<int>(cl);
    a.c_right = static_cast<int>(cr);
    a.method = static_cast<int>(method);
    a.c_out_left = static_cast<int>(split ? half : channels);
    const Source<scalar_t> gl = source<scalar_t>(ga, {}, {}, false), gr = source<scalar_t>(gb, {}, {}, false);
    a.grad_left = gl.data;
    a.ld_grad_left = gl.ld;
    a.grad_right = gr.data;
    a.ld_grad_right = gr.ld;
    a.out_left = dl.data_ptr<scalar_t>();
    a.out_right = dr.data_ptr<scalar_t>();
    Tensor partial;
    if (left_scale || right_scale) {
      partial = floats(affine_grad_tiling(a, pixels).chunks * 2 * channels, left);
      a.partial = partial.data_ptr<float>();
    }
    float* to[4];
    for (int i = 0; i < 4; ++i) to[i] = sums[i].numel() > 0 ? sums[i].data_ptr<float>() : nullptr;
    launch_affine_grad(a, pixels, to, stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {dl, dr, sums[0], sums[2], sums[1], sums[3]};
}

// Contiguous copies of the arguments of a mixed sum, and the parameter structs of its launches.
struct MixedArgs {
  std::vector<Tensor> y, scale, shift;
  Tensor weights;
  MixedArgs(at::TensorList ys, at::TensorList scales, at::TensorList shifts, const Tensor& w) {
    for (size_t i = 0; i < ys.size(); ++i) {
      y.push_back(as_map(ys[i]));
      scale.push_back(*vector(scales[i]));
      shift.push_back(*vector(shifts[i]));
    }
    weights = *vector(w);
  }
  size_t size() const { return y.size(); }
  // The maps from `begin` on, as many as one launch takes.
  template <typename S>
  Mixed<S> get(size_t begin) const {
    Mixed<S> m{};
    for (size_t i = begin; i < size() && m.count < kMaxMixed; ++i, ++m.count) {
      m.y[m.count] = y[i].const_data_ptr<S>();
      m.scale[m.count] = scale[i].const_data_ptr<float>();
      m.shift[m.count] = shift[i].const_data_ptr<float>();
    }
    m.weights = weights.const_data_ptr<float>() + begin;
    return m;
  }
};

Tensor mixed_sum(at::TensorList y, at::TensorList scale, at::TensorList shift, const Tensor& weights,
                 const OptTensor& residual) {
  check_mixed_sum(y, scale, shift, weights, residual);
  const c10::cuda::CUDAGuard guard(y[0].device());
  const MixedArgs args(y, scale, shift, weights);
  Tensor out = empty_map(y[0].sizes(), y[0]), r;
  if (residual) r = as_map(*residual);
  if (out.numel() == 0) return out;
  DETNAS_DISPATCH(y[0], "mixed_sum", [&] {
    // Sums of more maps than a launch takes go on in float32.
    const Tensor carry = args.size() > kMaxMixed ? floats(out.numel(), out) : Tensor();
    for (size_t begin = 0; begin < args.size(); begin += kMaxMixed) {
      Mixed<scalar_t> m = args.get<scalar_t>(begin);
      if (begin == 0 && residual) m.residual = r.const_data_ptr<scalar_t>();
      if (begin > 0) m.from = carry.const_data_ptr<float>();
      if (begin + kMaxMixed < args.size()) m.to = carry.data_ptr<float>();
      else m.out = out.data_ptr<scalar_t>();
      launch_mixed_sum(m, pixel_count(out), static_cast<int>(out.size(1)), stream());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> mixed_sum_backward(
    const Tensor& grad, at::TensorList y, at::TensorList scale, at::TensorList shift,
    const Tensor& weights) {
  check_mixed_sum_backward(grad, y, scale, shift, weights);
  const c10::cuda::CUDAGuard guard(y[0].device());
  const MixedArgs args(y, scale, shift, weights);
  const Tensor g = as_map(grad);
  const int64_t c = g.size(1), pixels = pixel_count(g), n = y.size();
  std::vector<Tensor> dy, da, db;
  Tensor dw = floats(n, g);
  for (int64_t i = 0; i < n; ++i) {
    dy.push_back(empty_map(g.sizes(), g));
    da.push_back(floats(c, g));
    db.push_back(floats(c, g));
  }
  if (g.numel() == 0) {
    for (int64_t i = 0; i < n; ++i) {
      da[i].zero_();
      db[i].zero_();
    }
    return {dy, da, db, dw.zero_()};
  }
  DETNAS_DISPATCH(g, "mixed_sum_backward", [&] {
    for (int64_t begin = 0; begin < n; begin += kMaxMixed) {
      Mixed<scalar_t> m = args.get<scalar_t>(begin);
      m.grad = g.const_data_ptr<scalar_t>();
      MixedSums sums{};
      sums.grad_weights = dw.data_ptr<float>() + begin;
      for (int k = 0; k < m.count; ++k) {
        m.grad_y[k] = dy[begin + k].template data_ptr<scalar_t>();
        sums.grad_scale[k] = da[begin + k].template data_ptr<float>();
        sums.grad_shift[k] = db[begin + k].template data_ptr<float>();
      }
      const MixedPlan plan = plan_mixed_sum_grad(m, pixels, static_cast<int>(c));
      const Tensor partial = floats(plan.maps_size + plan.shares_size, g);
      launch_mixed_sum_grad(m, plan, pixels, static_cast<int>(c), partial.data_ptr<float>(), sums, stream());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {dy, da, db, dw};
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("shuffle_concat", &detnas::cuda::shuffle_concat);
  m.impl("shuffle_concat_backward", &detnas::cuda::shuffle_concat_backward);
  m.impl("mixed_sum", &detnas::cuda::mixed_sum);
  m.impl("mixed_sum_backward", &detnas::cuda::mixed_sum_backward);
}
