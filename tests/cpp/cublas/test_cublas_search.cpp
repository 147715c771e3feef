// Where cuBLASLt is looked for, in which order, and what is said when it is nowhere:
//     test_cublas_search CASE FOLDER
// FOLDER holds stand-ins as in folders of Python packages: new/ and old/ for CUDA 13 and 12, both/.
#include <dlfcn.h>

#include "../check.h"
#include "cuda/cublas_lt.h"
#include "flatstep/runtime.h"

namespace {

using flatstep::RuntimeFailure;
using flatstep::cuda::cublas_lt;

constexpr const char* kNew = "/nvidia/cu13/lib/libcublasLt.so.13";
constexpr const char* kOld = "/nvidia/cublas/lib/libcublasLt.so.12";

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Exits with 77, which ctest counts as not run, where the system has a library of its own.
void require_none_in_the_system() {
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (dlopen(name, RTLD_NOW | RTLD_LOCAL) != nullptr) std::exit(77);
  }
}

void nowhere(const std::string& folder) {
  require_none_in_the_system();
  flatstep::set_package_folders({"", folder + "/nothing"});
  CHECK_THROWS(cublas_lt(), RuntimeFailure, "nvidia-cublas (CUDA 13)");
  CHECK_THROWS(cublas_lt(), RuntimeFailure, "nvidia-cublas-cu12 (CUDA 12)");
  CHECK_THROWS(cublas_lt(), RuntimeFailure, "FLATSTEP_CUBLASLT");
  CHECK_THROWS(cublas_lt(), RuntimeFailure, "/nothing/nvidia/cu13/lib/libcublasLt.so.13, ");
  CHECK_THROWS(cublas_lt(), RuntimeFailure, ", libcublasLt.so.12");
  // It is looked for again.
  flatstep::set_package_folders({folder + "/new"});
  CHECK(ends_with(cublas_lt().path, "/new" + std::string(kNew)));
}

void newer_first(const std::string& folder) {  // the emulator is CUDA 13
  flatstep::set_package_folders({folder + "/old", folder + "/both"});
  CHECK(ends_with(cublas_lt().path, "/both" + std::string(kNew)));
}

void older(const std::string& folder) {
  require_none_in_the_system();
  flatstep::set_package_folders({folder + "/nothing", folder + "/old"});
  CHECK(ends_with(cublas_lt().path, "/old" + std::string(kOld)));
}

void loaded_already(const std::string& folder) {
  CHECK(dlopen((folder + "/old" + kOld).c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr);
  flatstep::set_package_folders({folder + "/new"});
  CHECK(ends_with(cublas_lt().path, "/old" + std::string(kOld)));
}

void beside_own_package(const std::string&) {  // this program lies in PACKAGES/flatstep/lib
  flatstep::set_package_folders({});
  CHECK(ends_with(cublas_lt().path, "/both" + std::string(kNew)));
}

void toolkit(const std::string& folder) {
  require_none_in_the_system();
  setenv("CUDA_HOME", (folder + "/toolkit").c_str(), 1);
  CHECK(ends_with(cublas_lt().path, "/toolkit/lib64/libcublasLt.so.13"));
}

void named(const std::string& folder) {
  flatstep::set_package_folders({folder + "/new"});
  setenv("FLATSTEP_CUBLASLT", (folder + "/no-such-file").c_str(), 1);
  CHECK_THROWS(cublas_lt(), RuntimeFailure, "FLATSTEP_CUBLASLT: ");
  setenv("FLATSTEP_CUBLASLT", "libdl.so.2", 1);  // a library, but another one
  CHECK_THROWS(cublas_lt(), RuntimeFailure, "has no cublasLtCreate");
  setenv("FLATSTEP_CUBLASLT", (folder + "/old" + kOld).c_str(), 1);
  CHECK(ends_with(cublas_lt().path, "/old" + std::string(kOld)));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  unsetenv("FLATSTEP_CUBLASLT");
  unsetenv("CUDA_HOME");
  unsetenv("CUDA_PATH");
  const std::string which = arguments[1], folder = arguments[2];
  if (which == "nowhere")
    nowhere(folder);
  else if (which == "newer_first")
    newer_first(folder);
  else if (which == "older")
    older(folder);
  else if (which == "loaded_already")
    loaded_already(folder);
  else if (which == "beside_own_package")
    beside_own_package(folder);
  else if (which == "toolkit")
    toolkit(folder);
  else if (which == "named")
    named(folder);
  else
    return 2;
  return failures == 0 ? 0 : 1;
}
