// Operators that others are made of, called through the dispatcher.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include "common.h"

namespace detnas {

template <typename F>
c10::TypedOperatorHandle<F> handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

using Conv = std::tuple<Tensor, Tensor, Tensor, Tensor>;                        // y, count, mean, m2
using ConvNorm = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // and scale, shift

}  // namespace detnas
