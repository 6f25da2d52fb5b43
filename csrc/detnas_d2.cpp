// The library of the package's operators: torch.ops.detnas_d2.*
//
// schema.cpp adds the operators' schemas (TORCH_LIBRARY_FRAGMENT), the files under cpu/ and cuda/
// their kernels (TORCH_LIBRARY_IMPL). See README.md in this folder.

#include <Python.h>

#include <ATen/Version.h>
#include <torch/library.h>

#include <string>

namespace {

// What was built and what the kernels will run on, for reports and bug reports.
std::string build_info() {
#ifdef WITH_CUDA
  const char* cuda = "yes";
#else
  const char* cuda = "no";
#endif
  return std::string("detnas_d2 " DETNAS_D2_VERSION ", CPU capability ") +
      at::get_cpu_capability() + ", CUDA " + cuda;
}

} // namespace

TORCH_LIBRARY(detnas_d2, m) {
  m.def("build_info() -> str", &build_info);
}

// An empty Python module: importing it loads this library, which registers the operators.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "Operators of detnas_d2.", -1, nullptr};
  return PyModule_Create(&definition);
}
