# The emulator itself, for the programs that test kernels and for FLATSTEP_CUDA=EMULATED.
set(FLATSTEP_EMULATOR_SOURCES
    block.cpp
    emulator.cpp
    fiber.cpp
    host_api.cpp
    host_memory.cpp
    host_streams.cpp
    memory.cpp
    races.cpp)
