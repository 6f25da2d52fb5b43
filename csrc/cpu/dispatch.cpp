// Run-time choice of the instruction set: the best the machine has, or DETNAS_D2_CPU_CAPABILITY.
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "common.h"

namespace detnas {
namespace cpu {
namespace {

const char* const kNames = "default, avx2 or avx512, supported by this machine and build";

const Kernels<float>* find(const std::string& name) {
  if (name == "default") return &kernels_default_float();
#if defined(__x86_64__)
#if defined(DETNAS_D2_HAVE_AVX2)
  if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &kernels_avx2_float();
#endif
#if defined(DETNAS_D2_HAVE_AVX512) && defined(DETNAS_D2_CHECKED)
  // tests/ops/sanitized.py compiles the wide vectors for AVX2, where more machines can run them.
  if (name == "avx512") return &kernels_avx512_float();
#elif defined(DETNAS_D2_HAVE_AVX512)
  if (name == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &kernels_avx512_float();
#endif
#endif
  return nullptr;
}

const Kernels<float>* initial() {
  if (const char* name = std::getenv("DETNAS_D2_CPU_CAPABILITY")) {
    const Kernels<float>* k = find(name);
    TORCH_CHECK(k, "DETNAS_D2_CPU_CAPABILITY=", name, ": expected ", kNames);
    return k;
  }
  for (const char* name : {"avx512", "avx2"})
    if (const Kernels<float>* k = find(name)) return k;
  return find("default");
}

std::atomic<const Kernels<float>*>& current() {
  static std::atomic<const Kernels<float>*> kernels{initial()};
  return kernels;
}

std::string cpu_capability() { return current().load()->name; }

void set_cpu_capability(const std::string& name) {
  const Kernels<float>* k = find(name);
  TORCH_CHECK(k, "cpu capability ", name, ": expected ", kNames);
  current().store(k);
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return *current().load();
}

template <>
const Kernels<double>& kernels<double>() {  // for gradient checks: correct, not tuned
  return kernels_default_double();
}

}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_FRAGMENT(detnas_d2, m) {
  m.def("cpu_capability() -> str", &detnas::cpu::cpu_capability);
  m.def("set_cpu_capability(str name) -> ()", &detnas::cpu::set_cpu_capability);
}
