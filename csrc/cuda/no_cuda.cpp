// Stands in for the CUDA backend in a build without it.
#include "core/backend.h"
#include "flatstep/error.h"

namespace flatstep::cuda {

BackendHandle backend(const Device&) {
  throw RuntimeFailure(std::string("device: cuda is not available, ") + FLATSTEP_CUDA_WHY_NOT);
}

void describe(BuildInfo& info) {
  info.cuda_built = false;
  info.cuda_why_not = FLATSTEP_CUDA_WHY_NOT;
}

}  // namespace flatstep::cuda
