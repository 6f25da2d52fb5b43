// shuffle_concat and its backward on the CPU.
#include <torch/library.h>

#include "../batches.h"
#include "common.h"

namespace detnas {
namespace cpu {
namespace {

using Pair = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Halves {
  const Tensor &left, &right;
  const OptTensor &left_scale, &left_shift, &right_scale, &right_shift;
  bool left_relu, right_relu;
  int64_t method;
  bool split;
};

// The arguments of the kernel, with the memory they point to.
template <typename T>
struct Prepared {
  Map<T> left, right;
  Padded<T> ls, lb, rs, rb;
  ShuffleArgs<T> args;
  explicit Prepared(const Halves& h)
      : left(as_map<T>(h.left, true)), right(as_map<T>(h.right, true)), ls(h.left_scale),
        lb(h.left_shift), rs(h.right_scale), rb(h.right_shift) {
    args.left = left.source();
    args.right = right.source();
    args.left.scale = ls.get();
    args.left.shift = lb.get();
    args.left.relu = h.left_relu;
    args.right.scale = rs.get();
    args.right.shift = rb.get();
    args.right.relu = h.right_relu;
    args.c_left = left.c;
    args.c_right = right.c;
    args.method = static_cast<int>(h.method);
    args.c_out_left = (left.c + right.c) / 2;
  }
};

template <typename T>
Pair forward(const Halves& h) {
  Prepared<T> p(h);
  const int64_t channels = p.left.c + p.right.c, half = p.args.c_out_left, rows = p.left.pixels();
  Tensor a, b;
  if (h.split) {
    a = empty_map(p.left.n, half, p.left.h, p.left.w, h.left);
    b = empty_map(p.left.n, channels - half, p.left.h, p.left.w, h.left);
    p.args.out_left = a.data_ptr<T>();
    p.args.out_right = b.data_ptr<T>();
    p.args.ld_out_left = half;
    p.args.ld_out_right = channels - half;
  } else {
    a = empty_map(p.left.n, channels, p.left.h, p.left.w, h.left);
    b = at::empty({0}, h.left.options());
    p.args.out_left = a.data_ptr<T>();
    p.args.out_right = a.data_ptr<T>() + half;
    p.args.ld_out_left = p.args.ld_out_right = channels;
  }
  for_tasks(rows, task_rows(rows), [&](int64_t, int64_t begin, int64_t end) {
    kernels<T>().shuffle(p.args, begin, end, workspace<T>(shuffle_workspace(channels)));
  });
  return {a, b};
}

Pair shuffle_concat(const Tensor& left, const Tensor& right, const OptTensor& left_scale,
                    const OptTensor& left_shift, const OptTensor& right_scale,
                    const OptTensor& right_shift, bool left_relu, bool right_relu, int64_t method,
                    bool split, int64_t batches) {
  check_shuffle(left, right, left_scale, left_shift, right_scale, right_shift, method, split, batches);
  if (batches > 1) {
    auto [a, b] = by_batch(batches, [&](int64_t i) {
      return shuffle_concat(batch_of(left, batches, i), batch_of(right, batches, i), vector_of(left_scale, i),
                            vector_of(left_shift, i), vector_of(right_scale, i), vector_of(right_shift, i),
                            left_relu, right_relu, method, split, 1);
    });
    return {a, split ? b : b.flatten()};
  }
  if (is_reduced(left)) {
    auto [a, b] = shuffle_concat(left.to(at::kFloat), right.to(at::kFloat), left_scale, left_shift,
                                 right_scale, right_shift, left_relu, right_relu, method, split, 1);
    return {a.to(left.scalar_type()), b.to(left.scalar_type())};
  }
  return dispatch(left, "shuffle_concat", [&](auto zero) {
    return forward<decltype(zero)>({left, right, left_scale, left_shift, right_scale, right_shift,
                                    left_relu, right_relu, method, split});
  });
}

template <typename T>
Gradients backward(const Tensor& grad_left, const Tensor& grad_right, Halves h) {
  const Tensor left = h.left.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor right = h.right.contiguous(at::MemoryFormat::ChannelsLast);
  Prepared<T> p({left, right, h.left_scale, h.left_shift, h.right_scale, h.right_shift, h.left_relu,
                 h.right_relu, h.method, h.split});
  const int64_t channels = p.left.c + p.right.c, rows = p.left.pixels();
  const Map<T> ga = as_map<T>(grad_left), gb = as_map<T>(h.split ? grad_right : grad_left);
  p.args.out_left = const_cast<T*>(ga.data);
  p.args.ld_out_left = ga.ld;
  p.args.out_right = const_cast<T*>(gb.data) + (h.split ? 0 : p.args.c_out_left);
  p.args.ld_out_right = gb.ld;
  Tensor dl = empty_map(p.left.n, p.left.c, p.left.h, p.left.w, left);
  Tensor dr = empty_map(p.left.n, p.right.c, p.left.h, p.left.w, left);
  p.args.grad_left = dl.data_ptr<T>();
  p.args.grad_right = dr.data_ptr<T>();
  const int64_t per_task = task_rows(rows);
  Partials<T> of_left(ceil_div(rows, per_task), p.left.c), of_right(ceil_div(rows, per_task), p.right.c);
  for_tasks(rows, per_task, [&](int64_t t, int64_t begin, int64_t end) {
    ShuffleArgs<T> mine = p.args;
    mine.d_scale_left = of_left.first(t);
    mine.d_shift_left = of_left.second(t);
    mine.d_scale_right = of_right.first(t);
    mine.d_shift_right = of_right.second(t);
    kernels<T>().shuffle_backward(mine, begin, end, workspace<T>(shuffle_workspace(channels)));
  });
  auto totals = [&](Partials<T>& partials, bool wanted, int64_t c) -> Pair {
    const auto options = left.options().memory_format(at::MemoryFormat::Contiguous);
    if (!wanted) return {at::empty({0}, options), at::empty({0}, options)};
    Tensor a = at::empty({c}, options), b = at::empty({c}, options);
    partials.totals(a.template data_ptr<T>(), b.template data_ptr<T>());
    return {a, b};
  };
  auto [ls, lb] = totals(of_left, h.left_scale.has_value(), p.left.c);
  auto [rs, rb] = totals(of_right, h.right_scale.has_value(), p.right.c);
  return {dl, dr, ls, lb, rs, rb};
}

Gradients shuffle_concat_backward(const Tensor& grad_left, const Tensor& grad_right,
                                  const Tensor& left, const Tensor& right,
                                  const OptTensor& left_scale, const OptTensor& left_shift,
                                  const OptTensor& right_scale, const OptTensor& right_shift,
                                  bool left_relu, bool right_relu, int64_t method, bool split) {
  const Halves h{left, right, left_scale, left_shift, right_scale, right_shift, left_relu, right_relu, method, split};
  check_shuffle_backward(grad_left, grad_right, left, right, left_scale, left_shift, right_scale, right_shift,
                         method, split);
  if (is_reduced(left)) {
    const auto f = at::kFloat, type = left.scalar_type();
    auto [dl, dr, ls, lb, rs, rb] = shuffle_concat_backward(
        grad_left.to(f), grad_right.to(f), left.to(f), right.to(f), left_scale, left_shift,
        right_scale, right_shift, left_relu, right_relu, method, split);
    return {dl.to(type), dr.to(type), ls, lb, rs, rb};
  }
  return dispatch(left, "shuffle_concat", [&](auto zero) {
    return backward<decltype(zero)>(grad_left, grad_right, h);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("shuffle_concat", &detnas::cpu::shuffle_concat);
  m.impl("shuffle_concat_backward", &detnas::cpu::shuffle_concat_backward);
}
