# FLATSTEP_CUDA=AUTO builds the CUDA backend where it can and says what it did, ON fails with the
# reason, OFF is quick. Sets FLATSTEP_CUDA_SOURCES, _STATUS and, when it is not built, _WHY_NOT.
if(NOT FLATSTEP_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FLATSTEP_CUDA is '${FLATSTEP_CUDA}', expected AUTO, ON or OFF")
endif()

set(FLATSTEP_CUDA_SOURCES cuda/no_cuda.cpp)
if(FLATSTEP_CUDA STREQUAL "OFF")
  set(FLATSTEP_CUDA_WHY_NOT "built with FLATSTEP_CUDA=OFF")
else()
  set(FLATSTEP_CUDA_WHY_NOT "this version has no CUDA kernels yet")
  if(FLATSTEP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FLATSTEP_CUDA=ON: ${FLATSTEP_CUDA_WHY_NOT}")
  endif()
endif()
set(FLATSTEP_CUDA_STATUS "OFF (${FLATSTEP_CUDA_WHY_NOT})")
