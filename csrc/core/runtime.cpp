#include "flatstep/runtime.h"

#include "core/backend.h"
#include "core/checks.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "flatstep/error.h"
#include "flatstep/version.h"

namespace flatstep {

Error::~Error() = default;
InvalidArgument::~InvalidArgument() = default;
OutOfRange::~OutOfRange() = default;
RuntimeFailure::~RuntimeFailure() = default;

const char* version() { return FLATSTEP_VERSION; }

void set_num_threads(int threads) {
  require(threads >= 1 && threads <= 4096, "threads", std::int64_t{threads}, "1 to 4096");
  cpu::set_worker_count(threads);
}

int get_num_threads() { return cpu::worker_count(); }

BuildInfo build_info() {
  BuildInfo info;
  info.version = version();
  info.isa_available = cpu::available_isas();
  info.isa = info.isa_available[cpu::selected_isa()];
  info.threads = get_num_threads();
  info.openmp = cpu::has_openmp();
  info.blas = "built-in (packed GEMM, " + info.isa + ")";
  cuda::describe(info);
  return info;
}

BackendHandle backend_of(const Device& device) {
  return device.type == DeviceType::cuda ? cuda::backend(device) : cpu::backend();
}

std::string to_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::u8:
      return "uint8";
    case DType::u16:
      return "uint16";
  }
  return "unknown";
}

}  // namespace flatstep
