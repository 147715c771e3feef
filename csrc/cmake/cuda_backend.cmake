# Adds the CUDA backend that detect_cuda.cmake chose to a target. The same .cu files go to nvcc or,
# as C++, to the emulator of the tests.

# Products and sums are fused only where the source says so, as in the CPU's kernels.
set(FLATSTEP_NVCC_FLAGS -fmad=false --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra
                        $<$<BOOL:${FLATSTEP_WERROR}>:-Werror=all-warnings>)

# flatstep_cuda_backend(<target> KERNELS <.cu files> BLAS <files of the matrix product>)
function(flatstep_cuda_backend target)
  cmake_parse_arguments(cuda "" "" "KERNELS;BLAS" ${ARGN})
  if(FLATSTEP_CUDA_KIND STREQUAL "OFF")
    target_sources(${target} PRIVATE cuda/no_cuda.cpp)
    set_source_files_properties(cuda/no_cuda.cpp PROPERTIES COMPILE_DEFINITIONS
                                "FLATSTEP_CUDA_WHY_NOT=\"${FLATSTEP_CUDA_WHY_NOT}\"")
    return()
  endif()
  string(REPLACE ";" " " archs "${FLATSTEP_CUDA_ARCHS}")
  set_source_files_properties(${cuda_KERNELS} PROPERTIES COMPILE_DEFINITIONS
                              "FLATSTEP_CUDA_ARCHS=\"${archs}\"")
  target_sources(${target} PRIVATE ${cuda_KERNELS})
  if(FLATSTEP_CUDA_KIND STREQUAL "EMULATED")
    flatstep_emulated_cuda(${target} ${cuda_KERNELS})
  else()
    target_sources(${target} PRIVATE ${cuda_BLAS})
    flatstep_nvcc_settings(${target})
  endif()
endfunction()

function(flatstep_nvcc_settings target)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                        CUDA_EXTENSIONS OFF CUDA_VISIBILITY_PRESET hidden
                        CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${FLATSTEP_NVCC_FLAGS}>")
  target_include_directories(${target} SYSTEM
                             PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_libraries(${target} PRIVATE ${CMAKE_DL_LIBS})
  if(NOT BUILD_SHARED_LIBS)  # a program that links the library need not have CUDA as a language
    find_package(CUDAToolkit QUIET)
    if(TARGET CUDA::cudart_static)
      target_link_libraries(${target} PRIVATE CUDA::cudart_static)
    endif()
  endif()
  # The runtime inside is this library's own: other libraries in the process have theirs.
  target_link_options(${target} PRIVATE -Wl,--exclude-libs,libcudart_static.a:libcudadevrt.a)
endfunction()

# Kernels as C++, run by the emulator of the tests, which also stands in for CUDA's runtime and for
# cuBLAS.
function(flatstep_emulated_cuda target)
  set(emulator ${PROJECT_SOURCE_DIR}/tests/emulator)
  include(${emulator}/sources.cmake)
  list(TRANSFORM FLATSTEP_EMULATOR_SOURCES PREPEND ${emulator}/)
  set(gemm ${emulator}/gemm.cpp)
  target_sources(${target} PRIVATE ${FLATSTEP_EMULATOR_SOURCES} ${gemm})
  set_source_files_properties(${FLATSTEP_EMULATOR_SOURCES} PROPERTIES COMPILE_OPTIONS
                              -Wno-missing-field-initializers)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  set_source_files_properties(
    ${ARGN} ${gemm} PROPERTIES COMPILE_OPTIONS
    "-x;c++;-fno-strict-aliasing;-ffp-contract=off;-Wno-unknown-pragmas;-Wno-unused-function")
  target_compile_definitions(${target} PRIVATE FLATSTEP_CUDA_EMULATED)
  target_include_directories(${target} BEFORE PRIVATE ${emulator})
  find_package(Threads REQUIRED)
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()
