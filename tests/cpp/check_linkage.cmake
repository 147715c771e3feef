# Kernels are compiled once per instruction set. A function that all of their objects offer to the
# linker, such as an inline one of a shared header or of the standard library, would be kept once,
# possibly with instructions that the processor lacks. So whatever an object defines for others must
# have the namespace of its instruction set in its name.
# cmake -DNM=nm -DISA=x86_64_v3 "-DOBJECTS=a.o;b.o" -P check_linkage.cmake
set(offered "")
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE text RESULT_VARIABLE failed)
  if(failed OR text STREQUAL "")
    message(FATAL_ERROR "${NM} finds nothing in ${object}")
  endif()
  string(REGEX MATCHALL "[0-9a-f]+ [A-Zuvw] [^\n]+" symbols "${text}")
  foreach(symbol ${symbols})
    if(NOT symbol MATCHES "${ISA}|DW\\.ref\\.")
      list(APPEND offered "${object}: ${symbol}")
    endif()
  endforeach()
endforeach()
if(offered)
  list(JOIN offered "\n" offered)
  message(FATAL_ERROR "symbols that other instruction sets' objects may define as well:\n${offered}")
endif()
