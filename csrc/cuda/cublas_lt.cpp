// Where cuBLASLt comes from: a library that the process has (PyTorch's, say), so that there is one
// only; then NVIDIA's Python packages, then the toolkit and the system.
#include "cuda/cublas_lt.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <memory>
#include <mutex>
#include <vector>

#include "core/package_folders.h"
#include "flatstep/error.h"

namespace flatstep::cuda {
namespace {

constexpr const char* kVariable = "FLATSTEP_CUBLASLT";

// One major version of CUDA.
struct Major {
  int number;
  const char* soname;
  const char* folder;   // in a folder of Python packages
  const char* package;  // that brings it
};
constexpr Major kMajors[] = {
    {13, "libcublasLt.so.13", "/nvidia/cu13/lib/", "nvidia-cublas"},
    {12, "libcublasLt.so.12", "/nvidia/cublas/lib/", "nvidia-cublas-cu12"},
};

// The version this library was built with comes first: its driver is there.
std::vector<Major> majors() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  if (version / 1000 <= 12) return {kMajors[1], kMajors[0]};
  return {kMajors[0], kMajors[1]};
}

std::string parent(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// The file that an address was loaded from.
std::string file_of(const void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "";
  const std::unique_ptr<char, void (*)(void*)> path(realpath(info.dli_fname, nullptr), free);
  return path == nullptr ? "" : path.get();
}

// The folder of Python packages that this library lies in, as flatstep/lib/libflatstep.so.
std::string own_package_folder() {
  static const char here = 0;
  return parent(parent(parent(file_of(&here))));
}

std::string variable(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

// The files to try, in order.
std::vector<std::string> candidates() {
  std::vector<std::string> folders{own_package_folder()};
  for (const std::string& folder : package_folders()) folders.push_back(folder);
  std::vector<std::string> files;
  for (const Major& major : majors()) {
    for (const std::string& folder : folders) {
      if (!folder.empty()) files.push_back(folder + major.folder + major.soname);
    }
  }
  for (const Major& major : majors()) {
    for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
      const std::string root = variable(name);
      if (!root.empty()) files.push_back(root + "/lib64/" + major.soname);
    }
    files.push_back(major.soname);  // wherever the system's linker looks
  }
  return files;
}

std::string last_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown error" : text;
}

struct Opened {
  void* library;
  std::string path;
};

Opened open_library() {
  const std::string named = variable(kVariable);
  if (!named.empty()) {
    void* library = dlopen(named.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw RuntimeFailure(std::string(kVariable) + ": " + last_error());
    return {library, named};
  }
  for (const Major& major : majors()) {
    void* library = dlopen(major.soname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (library != nullptr) return {library, major.soname};
  }
  std::string tried;
  for (const std::string& file : candidates()) {
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return {library, file};
    tried += (tried.empty() ? "" : ", ") + file;
  }
  const std::vector<Major> order = majors();
  throw RuntimeFailure(
      std::string("cuBLAS: not found, and matrix products on a CUDA device need it. Install the "
                  "Python package ") +
      order[0].package + " (CUDA " + std::to_string(order[0].number) + ") or " + order[1].package +
      " (CUDA " + std::to_string(order[1].number) + "), or name the file of libcublasLt in " +
      kVariable + ". Tried: " + tried);
}

template <class Function>
void find(const Opened& opened, const char* name, Function*& function) {
  void* symbol = dlsym(opened.library, name);
  if (symbol == nullptr) {
    throw RuntimeFailure("cuBLAS: " + opened.path + " has no " + name);
  }
  function = reinterpret_cast<Function*>(symbol);
}

std::unique_ptr<const CublasLt> load() {
  const Opened opened = open_library();
  auto api = std::make_unique<CublasLt>();
  api->path = opened.path;
  find(opened, "cublasLtCreate", api->create);
  find(opened, "cublasLtMatmulDescCreate", api->product_create);
  find(opened, "cublasLtMatmulDescDestroy", api->product_destroy);
  find(opened, "cublasLtMatmulDescSetAttribute", api->product_set);
  find(opened, "cublasLtMatrixLayoutCreate", api->layout_create);
  find(opened, "cublasLtMatrixLayoutDestroy", api->layout_destroy);
  find(opened, "cublasLtMatmulPreferenceCreate", api->preference_create);
  find(opened, "cublasLtMatmulPreferenceDestroy", api->preference_destroy);
  find(opened, "cublasLtMatmulPreferenceSetAttribute", api->preference_set);
  find(opened, "cublasLtMatmulAlgoGetHeuristic", api->heuristic);
  find(opened, "cublasLtMatmul", api->matmul);
  const std::string file = file_of(reinterpret_cast<const void*>(api->matmul));
  if (!file.empty()) api->path = file;
  return api;
}

}  // namespace

const CublasLt& cublas_lt() {
  static std::mutex mutex;
  static const CublasLt* api = nullptr;  // never unloaded: work may be under way at exit
  const std::lock_guard<std::mutex> lock(mutex);
  if (api == nullptr) api = load().release();
  return *api;
}

}  // namespace flatstep::cuda
