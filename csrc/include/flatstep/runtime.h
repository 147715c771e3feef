// What the library was built with and what it runs on; the thread count.
#pragma once

#include <string>
#include <vector>

#include "flatstep/export.h"

namespace flatstep {

struct BuildInfo {
  std::string version;
  std::string isa;                         // the kernel table in use: "x86_64", "x86_64_v3", ...
  std::vector<std::string> isa_available;  // the tables this processor can run, slowest first
  int threads = 1;
  bool openmp = false;
  std::string blas;  // where matrix products are computed
  bool cuda_built = false;
  std::vector<std::string> cuda_archs;
  std::vector<std::string> cuda_devices;
  std::string cuda_why_not;  // empty when a CUDA device can be used
};

// Throws InvalidArgument when FLATSTEP_ISA names a table that this build or processor lacks.
FLATSTEP_API BuildInfo build_info();

FLATSTEP_API const char* version();

// Threads used by every call, at least 1. The default is what OpenMP offers (OMP_NUM_THREADS).
// No result depends on this number.
FLATSTEP_API void set_num_threads(int threads);
FLATSTEP_API int get_num_threads();

// Folders of Python packages, in which NVIDIA's cuBLAS is looked for at the first matrix product on
// a CUDA device, beside where else it may be.
FLATSTEP_API void set_package_folders(std::vector<std::string> folders);

}  // namespace flatstep
