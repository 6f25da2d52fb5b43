// bn_stats, bn_fold, shuffle_concat and mixed_sum on CUDA.
#include <torch/library.h>

#include "common.cuh"

namespace detnas {
namespace cuda {
namespace {

Stats bn_stats(const Tensor& x_in, const OptTensor& scale_in, const OptTensor& shift_in, bool relu) {
  check_map(x_in, "x");
  check_affine(scale_in, shift_in, x_in);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_map(x_in);
  const OptTensor scale = vector(scale_in), shift = vector(shift_in);
  const int64_t pixels = pixel_count(x), channels = x.size(1);
  Tensor mean = floats(channels, x), m2 = floats(channels, x);
  if (pixels == 0 || channels == 0) return {count_of(x, pixels), mean.zero_(), m2.zero_()};
  const int64_t chunks = chunk_count(pixels, ceil_div(channels, 128));
  Tensor partial = floats(moments_size(chunks, channels), x);
  DETNAS_DISPATCH(x, "bn_stats", [&] {
    launch_stats(source<scalar_t>(x, scale, shift, relu), pixels, channels, chunks,
                 partial.data_ptr<float>(), mean.data_ptr<float>(), m2.data_ptr<float>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {count_of(x, pixels), mean, m2};
}

std::tuple<Tensor, Tensor> bn_fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                   const OptTensor& gamma, const OptTensor& beta, double eps) {
  const c10::cuda::CUDAGuard guard(mean.device());
  Tensor scale = (m2.to(at::kDouble) / count + eps).rsqrt();
  if (gamma) scale = scale * *gamma;
  Tensor shift = -mean.to(at::kDouble) * scale;
  if (beta) shift = shift + *beta;
  return {scale.to(mean.scalar_type()), shift.to(mean.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_fold_backward(
    const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& count, const Tensor& mean,
    const Tensor& m2, const OptTensor& gamma, double eps) {
  const c10::cuda::CUDAGuard guard(mean.device());
  const Tensor r = (m2.to(at::kDouble) / count + eps).rsqrt();
  const Tensor w = gamma ? r * *gamma : r;
  const Tensor d_v = grad_scale.to(at::kDouble) - grad_shift.to(at::kDouble) * mean;
  const auto type = mean.scalar_type();
  return {(-grad_shift.to(at::kDouble) * w).to(type), (d_v * w * r * r * -0.5 / count).to(type),
          (d_v * r).to(type), grad_shift.clone()};
}

struct Halves {
  Tensor left, right;
  OptTensor ls, lb, rs, rb;
  Halves(const Tensor& l, const Tensor& r, const OptTensor& left_scale, const OptTensor& left_shift,
         const OptTensor& right_scale, const OptTensor& right_shift, int64_t method, bool split) {
    check_map(l, "left");
    check_map(r, "right");
    check_like(r, l, "right", "left");
    TORCH_CHECK(l.size(0) == r.size(0) && l.size(2) == r.size(2) && l.size(3) == r.size(3),
                "right: expected the batch and size of left, ", l.sizes(), ", got ", r.sizes());
    check_affine(left_scale, left_shift, l, "left_scale", "left_shift");
    check_affine(right_scale, right_shift, r, "right_scale", "right_shift");
    TORCH_CHECK(method >= 0 && method <= 2, "method: expected 0, 1 or 2, got ", method);
    TORCH_CHECK((!split && method == 0) || (l.size(1) + r.size(1)) % 2 == 0,
                "left, right: expected an even number of channels together, got ", l.size(1), " and ",
                r.size(1));
    left = as_map(l);
    right = as_map(r);
    ls = vector(left_scale);
    lb = vector(left_shift);
    rs = vector(right_scale);
    rb = vector(right_shift);
  }
};

std::tuple<Tensor, Tensor> shuffle_concat(const Tensor& left, const Tensor& right,
                                          const OptTensor& left_scale, const OptTensor& left_shift,
                                          const OptTensor& right_scale, const OptTensor& right_shift,
                                          bool left_relu, bool right_relu, int64_t method, bool split) {
  const Halves h(left, right, left_scale, left_shift, right_scale, right_shift, method, split);
  const c10::cuda::CUDAGuard guard(left.device());
  const int64_t n = left.size(0), height = left.size(2), width = left.size(3);
  const int64_t channels = left.size(1) + right.size(1), half = channels / 2;
  Tensor a = empty_map({n, split ? half : channels, height, width}, left);
  Tensor b = split ? empty_map({n, channels - half, height, width}, left) : at::empty({0}, left.options());
  if (a.numel() + b.numel() == 0) return {a, b};
  DETNAS_DISPATCH(left, "shuffle_concat", [&] {
    Shuffle<scalar_t> s{source<scalar_t>(h.left, h.ls, h.lb, left_relu),
                        source<scalar_t>(h.right, h.rs, h.rb, right_relu),
                        static_cast<int>(left.size(1)), static_cast<int>(right.size(1)),
                        static_cast<int>(method), static_cast<int>(half), a.data_ptr<scalar_t>(),
                        split ? b.data_ptr<scalar_t>() : a.data_ptr<scalar_t>() + half,
                        split ? half : channels, split ? channels - half : channels};
    launch_shuffle(s, pixel_count(left), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {a, b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> shuffle_concat_backward(
    const Tensor& grad_left, const Tensor& grad_right, const Tensor& left, const Tensor& right,
    const OptTensor& left_scale, const OptTensor& left_shift, const OptTensor& right_scale,
    const OptTensor& right_shift, bool left_relu, bool right_relu, int64_t method, bool split) {
  const Halves h(left, right, left_scale, left_shift, right_scale, right_shift, method, split);
  const c10::cuda::CUDAGuard guard(left.device());
  const int channels = static_cast<int>(left.size(1) + right.size(1)), half = channels / 2;
  const Tensor ga = as_map(grad_left), gb = split ? as_map(grad_right) : ga;
  check_same_shape(ga, {left.size(0), split ? half : channels, left.size(2), left.size(3)}, "grad_left");
  const int64_t pixels = pixel_count(left);
  auto one = [&](const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu, int offset) {
    const int64_t c = x.size(1);
    Tensor out = empty_map(x.sizes(), x), sums = at::zeros({2, c}, x.options().dtype(at::kFloat));
    if (out.numel() > 0) {
      const int64_t chunks = chunk_count(pixels, ceil_div(c, kLanes));
      Tensor partial = floats(chunks * 2 * c, x);
      DETNAS_DISPATCH(x, "shuffle_concat_backward", [&] {
        AffineGrad<scalar_t> a{ga.const_data_ptr<scalar_t>(),
                               gb.const_data_ptr<scalar_t>() + (split ? 0 : half),
                               ga.size(1), gb.size(1), half, static_cast<int>(method), channels, offset,
                               x.const_data_ptr<scalar_t>(), c, pointer(scale), pointer(shift), relu,
                               out.data_ptr<scalar_t>()};
        launch_affine_grad(a, pixels, static_cast<int>(c), chunks, partial.data_ptr<float>(),
                           sums.data_ptr<float>(), stream());
      });
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    const Tensor none = floats(0, x);
    return std::make_tuple(out, scale ? sums.select(0, 0) : none, scale ? sums.select(0, 1) : none);
  };
  auto [dl, ls, lb] = one(h.left, h.ls, h.lb, left_relu, 0);
  auto [dr, rs, rb] = one(h.right, h.rs, h.rb, right_relu, static_cast<int>(left.size(1)));
  return {dl, dr, ls.clone(), lb.clone(), rs.clone(), rb.clone()};
}

// Contiguous copies and the parameter struct of a mixed sum.
struct MixedArgs {
  std::vector<Tensor> y, scale, shift;
  Tensor weights;
  MixedArgs(at::TensorList ys, at::TensorList scales, at::TensorList shifts, const Tensor& w) {
    TORCH_CHECK(!ys.empty() && ys.size() <= kMaxMixed, "y: expected 1 to ", kMaxMixed,
                " tensors on CUDA, got ", ys.size());
    TORCH_CHECK(scales.size() == ys.size() && shifts.size() == ys.size(), "scale, shift: expected ",
                ys.size(), " vectors as y, got ", scales.size(), " and ", shifts.size());
    TORCH_CHECK(w.dim() == 1 && w.size(0) == static_cast<int64_t>(ys.size()),
                "weights: expected shape [", ys.size(), "], got ", w.sizes());
    for (size_t i = 0; i < ys.size(); ++i) {
      check_map(ys[i], "y");
      check_like(ys[i], ys[0], "y", "the first of y");
      check_same_shape(ys[i], ys[0].sizes(), "y");
      check_channels(scales[i], ys[0], ys[0].size(1), "scale");
      check_channels(shifts[i], ys[0], ys[0].size(1), "shift");
      y.push_back(as_map(ys[i]));
      scale.push_back(*vector(scales[i]));
      shift.push_back(*vector(shifts[i]));
    }
    weights = *vector(w);
  }
  template <typename S>
  Mixed<S> get() const {
    Mixed<S> m{};
    for (size_t i = 0; i < y.size(); ++i) {
      m.y[i] = y[i].const_data_ptr<S>();
      m.scale[i] = scale[i].const_data_ptr<float>();
      m.shift[i] = shift[i].const_data_ptr<float>();
    }
    m.weights = weights.const_data_ptr<float>();
    m.count = static_cast<int>(y.size());
    return m;
  }
};

Tensor mixed_sum(at::TensorList y, at::TensorList scale, at::TensorList shift, const Tensor& weights,
                 const OptTensor& residual) {
  const MixedArgs args(y, scale, shift, weights);
  const c10::cuda::CUDAGuard guard(y[0].device());
  Tensor out = empty_map(y[0].sizes(), y[0]), r;
  if (residual) {
    check_like(*residual, y[0], "residual", "y");
    check_same_shape(*residual, y[0].sizes(), "residual");
    r = as_map(*residual);
  }
  if (out.numel() == 0) return out;
  DETNAS_DISPATCH(y[0], "mixed_sum", [&] {
    Mixed<scalar_t> m = args.get<scalar_t>();
    m.residual = residual ? r.const_data_ptr<scalar_t>() : nullptr;
    m.out = out.data_ptr<scalar_t>();
    launch_mixed_sum(m, pixel_count(out), static_cast<int>(out.size(1)), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> mixed_sum_backward(
    const Tensor& grad, at::TensorList y, at::TensorList scale, at::TensorList shift,
    const Tensor& weights) {
  const MixedArgs args(y, scale, shift, weights);
  check_same_shape(grad, y[0].sizes(), "grad");
  const c10::cuda::CUDAGuard guard(y[0].device());
  const Tensor g = as_map(grad);
  const int64_t c = g.size(1), pixels = pixel_count(g), n = y.size();
  Tensor sums = at::zeros({1 + kMaxMixed, c}, g.options().dtype(at::kFloat));
  std::vector<Tensor> dy, da, db;
  for (int64_t i = 0; i < n; ++i) dy.push_back(empty_map(g.sizes(), g));
  if (g.numel() > 0) {
    const int64_t chunks = chunk_count(pixels, ceil_div(c, kLanes));
    Tensor partial = floats(chunks * (1 + kMaxMixed) * c, g);
    DETNAS_DISPATCH(g, "mixed_sum_backward", [&] {
      Mixed<scalar_t> m = args.get<scalar_t>();
      m.grad = g.const_data_ptr<scalar_t>();
      for (int64_t i = 0; i < n; ++i) m.grad_y[i] = dy[i].template data_ptr<scalar_t>();
      launch_mixed_sum_grad(m, pixels, static_cast<int>(c), chunks, partial.data_ptr<float>(),
                            sums.data_ptr<float>(), stream());
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  Tensor dw = floats(n, g);
  for (int64_t i = 0; i < n; ++i) {
    const Tensor w = args.weights.select(0, i), dot = sums.select(0, 1 + i), total = sums.select(0, 0);
    da.push_back(w * dot);
    db.push_back(w * total);
    dw.select(0, i).copy_((args.scale[i] * dot + args.shift[i] * total).sum());
  }
  return {dy, da, db, dw};
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CUDA, m) {
  m.impl("bn_stats", &detnas::cuda::bn_stats);
  m.impl("bn_fold", &detnas::cuda::bn_fold);
  m.impl("bn_fold_backward", &detnas::cuda::bn_fold_backward);
  m.impl("shuffle_concat", &detnas::cuda::shuffle_concat);
  m.impl("shuffle_concat_backward", &detnas::cuda::shuffle_concat_backward);
  m.impl("mixed_sum", &detnas::cuda::mixed_sum);
  m.impl("mixed_sum_backward", &detnas::cuda::mixed_sum_backward);
}
