// mixed_sum and its backward on the CPU.
#include <torch/library.h>

#include "common.h"

namespace detnas {
namespace cpu {
namespace {

using Gradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor>;

static_assert(kMaxSums >= kMostSums);

// The candidates' maps and their affines multiplied by the weights.
template <typename T>
struct Prepared {
  std::vector<Tensor> y;
  std::vector<Padded<T>> scale;
  Padded<T> shift;
  MixedSumArgs<T> args;
  Prepared(at::TensorList ys, at::TensorList scales, at::TensorList shifts, const Tensor& weights) {
    const Padded<T> w((OptTensor(weights)));
    const int64_t c = ys[0].size(1);
    Buffer<T> total(c, T(0));
    for (size_t i = 0; i < ys.size(); ++i) {
      y.push_back(ys[i].contiguous(at::MemoryFormat::ChannelsLast));
      const Padded<T> a((OptTensor(scales[i]))), b((OptTensor(shifts[i])));
      Buffer<T> folded(c);
      for (int64_t j = 0; j < c; ++j) {
        folded[j] = w.get()[i] * a.get()[j];
        total[j] += w.get()[i] * b.get()[j];
      }
      scale.emplace_back(std::move(folded));
    }
    shift = Padded<T>(std::move(total));
    args.count = static_cast<int>(ys.size());
    args.channels = c;
    args.shift = shift.get();
    for (size_t i = 0; i < ys.size(); ++i) {
      args.y[i] = y[i].const_data_ptr<T>();
      args.scale[i] = scale[i].get();
    }
  }
};

inline int64_t pixels(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3); }

Tensor mixed_sum(at::TensorList y, at::TensorList scale, at::TensorList shift, const Tensor& weights,
                 const OptTensor& residual) {
  check_mixed_sum(y, scale, shift, weights, residual);
  if (is_reduced(y[0])) {
    std::vector<Tensor> wide;
    for (const Tensor& t : y) wide.push_back(t.to(at::kFloat));
    return mixed_sum(wide, scale, shift, weights, to_type(residual, at::kFloat)).to(y[0].scalar_type());
  }
  return dispatch(y[0], "mixed_sum", [&](auto zero) {
    using T = decltype(zero);
    Prepared<T> p(y, scale, shift, weights);
    Tensor out = empty_map(y[0].size(0), y[0].size(1), y[0].size(2), y[0].size(3), y[0]);
    Tensor r;
    if (residual) {
      r = residual->contiguous(at::MemoryFormat::ChannelsLast);
      p.args.residual = r.const_data_ptr<T>();
    }
    p.args.out = out.data_ptr<T>();
    const int64_t rows = pixels(out);
    for_tasks(rows, task_rows(rows), [&](int64_t, int64_t begin, int64_t end) {
      kernels<T>().mixed_sum(p.args, begin, end);
    });
    return out;
  });
}

Gradients mixed_sum_backward(const Tensor& grad, at::TensorList y, at::TensorList scale,
                             at::TensorList shift, const Tensor& weights) {
  check_mixed_sum_backward(grad, y, scale, shift, weights);
  const size_t count = y.size();
  if (is_reduced(y[0])) {
    std::vector<Tensor> wide;
    for (const Tensor& t : y) wide.push_back(t.to(at::kFloat));
    Gradients g = mixed_sum_backward(grad.to(at::kFloat), wide, scale, shift, weights);
    for (Tensor& t : std::get<0>(g)) t = t.to(y[0].scalar_type());
    return g;
  }
  return dispatch(y[0], "mixed_sum", [&](auto zero) -> Gradients {
    using T = decltype(zero);
    Prepared<T> p(y, scale, shift, weights);
    const Tensor g = grad.contiguous(at::MemoryFormat::ChannelsLast);
    const int64_t c = p.args.channels, rows = pixels(g), per_task = task_rows(rows);
    const int64_t tasks = ceil_div(rows, per_task), ld = round_up(c, kChannelPad) + kChannelPad;
    Gradients out;
    p.args.grad = g.const_data_ptr<T>();
    for (size_t i = 0; i < count; ++i) {
      std::get<0>(out).push_back(empty_map(g.size(0), c, g.size(2), g.size(3), g));
      p.args.grad_y[i] = std::get<0>(out)[i].template data_ptr<T>();
    }
    std::vector<double> sums(tasks * (count + 1) * ld);
    for_tasks(rows, per_task, [&](int64_t t, int64_t begin, int64_t end) {
      MixedSumArgs<T> mine = p.args;
      mine.total = sums.data() + t * (count + 1) * ld;
      for (size_t i = 0; i < count; ++i) mine.dot[i] = mine.total + (i + 1) * ld;
      kernels<T>().mixed_sum_backward(mine, begin, end);
    });
    for (int64_t t = 1; t < tasks; ++t)
      for (size_t j = 0; j < (count + 1) * ld; ++j) sums[j] += sums[t * (count + 1) * ld + j];
    if (sums.empty()) sums.resize((count + 1) * ld);
    const auto options = g.options().memory_format(at::MemoryFormat::Contiguous);
    const Padded<T> w((OptTensor(weights)));
    Tensor grad_weights = at::empty({static_cast<int64_t>(count)}, options);
    for (size_t i = 0; i < count; ++i) {
      const double *total = sums.data(), *dot = sums.data() + (i + 1) * ld;
      const Padded<T> a((OptTensor(scale[i]))), b((OptTensor(shift[i])));
      Tensor da = at::empty({c}, options), db = at::empty({c}, options);
      double dw = 0;
      for (int64_t j = 0; j < c; ++j) {
        da.template data_ptr<T>()[j] = static_cast<T>(w.get()[i] * dot[j]);
        db.template data_ptr<T>()[j] = static_cast<T>(w.get()[i] * total[j]);
        dw += a.get()[j] * dot[j] + b.get()[j] * total[j];
      }
      grad_weights.template data_ptr<T>()[i] = static_cast<T>(dw);
      std::get<1>(out).push_back(da);
      std::get<2>(out).push_back(db);
    }
    std::get<3>(out) = grad_weights;
    return out;
  });
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("mixed_sum", &detnas::cpu::mixed_sum);
  m.impl("mixed_sum_backward", &detnas::cpu::mixed_sum_backward);
}
