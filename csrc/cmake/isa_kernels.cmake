# CPU kernels are plain loops, compiled once per instruction set into a namespace of that name; one
# table of them is chosen at run time. The order is slowest first.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(FLATSTEP_ISAS x86_64 x86_64_v3 x86_64_v4)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(FLATSTEP_ISAS aarch64)
else()
  set(FLATSTEP_ISAS generic)
endif()

# Spelled out, since -march=x86-64-v3 needs GCC 11.
set(FLATSTEP_FLAGS_x86_64)
set(FLATSTEP_FLAGS_x86_64_v3 -mavx2 -mfma -mf16c -mbmi -mbmi2)
set(FLATSTEP_FLAGS_x86_64_v4 ${FLATSTEP_FLAGS_x86_64_v3} -mavx512f -mavx512bw -mavx512cd
                             -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(FLATSTEP_FLAGS_aarch64)
set(FLATSTEP_FLAGS_generic)

# What lets the loops vectorise, and nothing that changes a result: no -ffast-math. A product and a
# sum are fused only where the source says so; the matrix product is the exception.
set(FLATSTEP_KERNEL_FLAGS -O3 -fopenmp-simd -fno-math-errno -fno-trapping-math)

list(TRANSFORM FLATSTEP_ISAS REPLACE "(.+)" "X(\\1)" OUTPUT_VARIABLE FLATSTEP_ISA_LIST)
list(JOIN FLATSTEP_ISA_LIST " " FLATSTEP_ISA_LIST)
configure_file(cpu/isa_list.h.in ${CMAKE_CURRENT_BINARY_DIR}/private/cpu/isa_list.h @ONLY)

# flatstep_isa_kernels(<target> <kernel sources>...)
function(flatstep_isa_kernels target)
  foreach(isa ${FLATSTEP_ISAS})
    set(objects ${target}_kernels_${isa})
    add_library(${objects} OBJECT ${ARGN})
    target_compile_features(${objects} PRIVATE cxx_std_17)
    set_target_properties(${objects} PROPERTIES CXX_VISIBILITY_PRESET hidden
                          VISIBILITY_INLINES_HIDDEN ON POSITION_INDEPENDENT_CODE ON)
    target_include_directories(${objects} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}
                                                  ${CMAKE_CURRENT_SOURCE_DIR}/include)
    target_compile_definitions(${objects} PRIVATE FLATSTEP_ISA=${isa})
    target_compile_options(
      ${objects} PRIVATE -Wall -Wextra ${FLATSTEP_KERNEL_FLAGS} ${FLATSTEP_FLAGS_${isa}}
                         $<$<BOOL:${FLATSTEP_WERROR}>:-Werror>)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")
  set_source_files_properties(cpu/kernels/gemm.cpp PROPERTIES COMPILE_OPTIONS "-ffp-contract=fast")
endfunction()
