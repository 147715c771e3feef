# Which CUDA backend is built. FLATSTEP_CUDA=AUTO builds it where a working nvcc is found and says
# what it did, ON fails with the reason, OFF probes nothing. EMULATED is for this project's tests:
# the kernels run on the CPU, in tests/emulator; AUTO never chooses it.
#
# Sets FLATSTEP_CUDA_KIND (NVCC, EMULATED or OFF), FLATSTEP_CUDA_ARCHS (what fs.info() shows),
# FLATSTEP_CUDA_STATUS and, when it is OFF, FLATSTEP_CUDA_WHY_NOT. Included from the top directory,
# since a language must be enabled where all of its users can see it.

# Clusters and cudaLaunchKernelExC came with 11.8.
set(FLATSTEP_NVCC_OLDEST 11.8)

# Machine code for the cards that are in data centres and PCs, PTX for what comes after. A card runs
# the code of a lower minor version: 80 serves Ampere and Ada (8.x).
set(FLATSTEP_CUDA_ARCHITECTURES 80-real 90-real)
set(FLATSTEP_CUDA_ARCHITECTURES_12_8 100-real 120-real)  # from nvcc 12.8

# nvcc as CMake would find it: the user's choice, else the toolkit's, which may be off the PATH.
macro(flatstep_find_nvcc)
  if(CMAKE_CUDA_COMPILER)
    set(FLATSTEP_CUDA_NVCC "${CMAKE_CUDA_COMPILER}")
  elseif(DEFINED ENV{CUDACXX})
    set(FLATSTEP_CUDA_NVCC "$ENV{CUDACXX}")
  else()
    find_package(CUDAToolkit QUIET)
    set(FLATSTEP_CUDA_NVCC "${CUDAToolkit_NVCC_EXECUTABLE}")
    if(NOT FLATSTEP_CUDA_NVCC)  # a compiler without its headers is no toolkit, but the reason to give
      find_program(FLATSTEP_NVCC_ON_PATH nvcc PATHS /usr/local/cuda/bin)
      mark_as_advanced(FLATSTEP_NVCC_ON_PATH)
      if(FLATSTEP_NVCC_ON_PATH)
        set(FLATSTEP_CUDA_NVCC "${FLATSTEP_NVCC_ON_PATH}")
      endif()
    endif()
  endif()
endmacro()

# The first line of a compiler's output that tells what is wrong.
function(flatstep_first_error text result)
  string(REGEX MATCH "[^\n]*(error|fatal|unsupported|not found|No such|cannot)[^\n]*" line "${text}")
  if(line STREQUAL "")
    string(REGEX MATCH "[^\n]+" line "${text}")
  endif()
  string(STRIP "${line}" line)
  string(SUBSTRING "${line}" 0 200 line)
  string(REGEX REPLACE "[\";\\\\]" "'" line "${line}")  # it becomes a string of C++ and of CMake
  set(${result} "${line}" PARENT_SCOPE)
endfunction()

# Compiles and links a program with the nvcc that was found. Sets FLATSTEP_CUDA_WHY_NOT to what is
# wrong: CMake's own check only says that something is.
function(flatstep_try_nvcc nvcc)
  set(FLATSTEP_CUDA_WHY_NOT "" PARENT_SCOPE)
  separate_arguments(nvcc UNIX_COMMAND "${nvcc}")  # CUDACXX may have options
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE version ERROR_VARIABLE error
                  RESULT_VARIABLE failed)
  if(failed OR NOT version MATCHES "release [0-9.]+, V([0-9.]+)")
    flatstep_first_error("${error}${version}" error)
    set(FLATSTEP_CUDA_WHY_NOT "${nvcc} does not run (${failed}): ${error}" PARENT_SCOPE)
    return()
  endif()
  set(FLATSTEP_NVCC_VERSION ${CMAKE_MATCH_1} PARENT_SCOPE)
  if(CMAKE_MATCH_1 VERSION_LESS FLATSTEP_NVCC_OLDEST)
    set(FLATSTEP_CUDA_WHY_NOT
        "${nvcc} is version ${CMAKE_MATCH_1}, expected ${FLATSTEP_NVCC_OLDEST} or newer" PARENT_SCOPE)
    return()
  endif()
  set(host)
  if(CMAKE_CUDA_HOST_COMPILER)
    set(host -ccbin "${CMAKE_CUDA_HOST_COMPILER}")
  elseif(DEFINED ENV{CUDAHOSTCXX})
    set(host -ccbin "$ENV{CUDAHOSTCXX}")
  endif()
  set(folder ${CMAKE_BINARY_DIR}${CMAKE_FILES_DIRECTORY}/flatstep_cuda)
  file(WRITE ${folder}/try.cu "#include <string>
__global__ void kernel(int* x) { *x = 1; }
int main() {
  if constexpr (sizeof(std::string) > 0) kernel<<<1, 1>>>(nullptr);
  return cudaDeviceSynchronize() == cudaSuccess;
}
")
  execute_process(COMMAND ${nvcc} ${host} -std=c++17 -cudart static -o try try.cu
                  WORKING_DIRECTORY ${folder} OUTPUT_VARIABLE output ERROR_VARIABLE error
                  RESULT_VARIABLE failed)
  if(failed)
    flatstep_first_error("${error}${output}" error)
    set(FLATSTEP_CUDA_WHY_NOT "${nvcc} cannot build a program: ${error}" PARENT_SCOPE)
  endif()
endfunction()

# Whether CMake can use it as well. An explicit CMAKE_CUDA_COMPILER would make a failure fatal,
# so the choice goes through the environment.
macro(flatstep_check_cuda_language)
  include(CheckLanguage)
  set(ENV{CUDACXX} "${FLATSTEP_CUDA_NVCC}")
  if(DEFINED CMAKE_CUDA_COMPILER AND NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # a failure of an earlier run
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(FLATSTEP_CUDA_WHY_NOT
        "CMake ${CMAKE_VERSION} cannot use ${FLATSTEP_CUDA_NVCC}, see ${CMAKE_BINARY_DIR}/CMakeFiles")
  endif()
endmacro()

# "80-real;90" becomes "sm_80;sm_90;compute_90".
function(flatstep_arch_names architectures result)
  set(names)
  foreach(architecture ${architectures})
    if(architecture MATCHES "^([0-9]+[af]?)-real$")
      list(APPEND names sm_${CMAKE_MATCH_1})
    elseif(architecture MATCHES "^([0-9]+[af]?)-virtual$")
      list(APPEND names compute_${CMAKE_MATCH_1})
    elseif(architecture MATCHES "^[0-9]+[af]?$")
      list(APPEND names sm_${architecture} compute_${architecture})
    else()
      list(APPEND names ${architecture})
    endif()
  endforeach()
  set(${result} ${names} PARENT_SCOPE)
endfunction()

macro(flatstep_detect_nvcc)
  get_property(FLATSTEP_LANGUAGES GLOBAL PROPERTY ENABLED_LANGUAGES)
  set(FLATSTEP_CUDA_WHY_NOT "")
  if("CUDA" IN_LIST FLATSTEP_LANGUAGES)  # the project around this one uses it already
    set(FLATSTEP_NVCC_VERSION ${CMAKE_CUDA_COMPILER_VERSION})
  else()
    flatstep_find_nvcc()
    if(NOT FLATSTEP_CUDA_NVCC)
      set(FLATSTEP_CUDA_WHY_NOT "no nvcc was found, CUDACXX can name one")
    else()
      flatstep_try_nvcc("${FLATSTEP_CUDA_NVCC}")
    endif()
    if(FLATSTEP_CUDA_WHY_NOT STREQUAL "")
      flatstep_check_cuda_language()
    endif()
  endif()
  if(FLATSTEP_CUDA_WHY_NOT STREQUAL "")
    if(DEFINED ENV{CUDAARCHS} AND NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")  # which CMake heeds since 3.20
    endif()
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES ${FLATSTEP_CUDA_ARCHITECTURES})
      if(FLATSTEP_NVCC_VERSION VERSION_GREATER_EQUAL 12.8)
        list(APPEND CMAKE_CUDA_ARCHITECTURES ${FLATSTEP_CUDA_ARCHITECTURES_12_8})
      endif()
      list(GET CMAKE_CUDA_ARCHITECTURES -1 FLATSTEP_NEWEST)
      string(REPLACE "-real" "-virtual" FLATSTEP_NEWEST ${FLATSTEP_NEWEST})
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${FLATSTEP_NEWEST})
    endif()
    enable_language(CUDA)
    flatstep_arch_names("${CMAKE_CUDA_ARCHITECTURES}" FLATSTEP_CUDA_ARCHS)
    set(FLATSTEP_CUDA_KIND NVCC)
    list(JOIN FLATSTEP_CUDA_ARCHS " " FLATSTEP_CUDA_STATUS)
    set(FLATSTEP_CUDA_STATUS "ON (nvcc ${FLATSTEP_NVCC_VERSION}, ${FLATSTEP_CUDA_STATUS})")
  elseif(FLATSTEP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FLATSTEP_CUDA=ON: ${FLATSTEP_CUDA_WHY_NOT}")
  endif()
endmacro()

set(FLATSTEP_CUDA_KIND OFF)
set(FLATSTEP_CUDA_ARCHS)
set(FLATSTEP_CUDA_WHY_NOT "")
if(FLATSTEP_CUDA STREQUAL "OFF")
  set(FLATSTEP_CUDA_WHY_NOT "built with FLATSTEP_CUDA=OFF")
elseif(FLATSTEP_CUDA STREQUAL "EMULATED")
  set(FLATSTEP_CUDA_KIND EMULATED)
  set(FLATSTEP_CUDA_ARCHS emulated)
  set(FLATSTEP_CUDA_STATUS "EMULATED (for tests: kernels run on the CPU)")
elseif(FLATSTEP_CUDA MATCHES "^(AUTO|ON)$")
  flatstep_detect_nvcc()
else()
  message(FATAL_ERROR "FLATSTEP_CUDA is '${FLATSTEP_CUDA}', expected AUTO, ON, OFF or EMULATED")
endif()
if(FLATSTEP_CUDA_KIND STREQUAL "OFF")
  set(FLATSTEP_CUDA_STATUS "OFF (${FLATSTEP_CUDA_WHY_NOT})")
endif()
