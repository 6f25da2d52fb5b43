// Operators without a gradient of their own refuse inputs that want one: gradients of operators (what
// is differentiated a second time is made of PyTorch's operators, detnas_d2/ops/registration.py), blocks
// in one call, dense convolutions and regions. Without this they would answer with gradients of zero.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

namespace detnas {
namespace {

void check_argument(const at::Tensor& t, const c10::FunctionSchema& schema, size_t index) {
  if (!t.defined()) return;
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(at::GradMode::is_enabled() && t.requires_grad()), schema.name(), ": not differentiable, but ",
      schema.arguments()[index].name(),
      " requires grad; call it under torch.no_grad() or detach its inputs");
}

void refuse_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  for (size_t i = 0; i < count; ++i) {
    const c10::IValue& value = torch::jit::peek(*stack, i, count);
    if (value.isTensor()) check_argument(value.toTensor(), schema, i);
    if (value.isTensorList())
      for (const at::Tensor& t : value.toTensorVector()) check_argument(t, schema, i);
  }
  // Nothing inside records gradients either.
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::autograd_dispatch_keyset);
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, Autograd, m) {
  for (const char* name :
       {"bn_stats_backward", "bn_fold_backward", "pointwise_conv_backward", "depthwise_conv_backward",
        "mixed_depthwise_backward", "shuffle_concat_backward", "mixed_sum_backward", "conv3x3",
        "conv3x3_packed", "pack_conv3x3", "shuffle_block", "shuffle_block_packed", "shuffle_block_stats",
        "shuffle_block_training_backward", "shuffle_blocks_stats", "pack_shuffle_block", "roi_align"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&detnas::refuse_gradients>());
}
