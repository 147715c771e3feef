// The C functions that a library's array type offers beside __dlpack__, and its current stream.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "python/dlpack_abi.h"

namespace flatstep::python {

namespace py = pybind11;

// The table of the object's type, if that very type has one and exports as __dlpack__ would: for a
// subclass that might not hold. Null for others.
const dlpack::ExchangeApi* exchange_api_of(py::handle object);

// Where the library of an array on a CUDA device works now, as a cudaStream_t: the current stream
// of PyTorch or CuPy. Nothing for others, whose streams are their own affair: they are asked to
// have their work visible on the legacy default stream, unless a call is on another.
std::optional<std::uintptr_t> current_stream(py::handle object, int device_index);

// The legacy default stream has two numbers as a cudaStream_t, 0 and 1. In flatstep::Device it is
// 0; DLPack has it as 1 and forbids 0. All other streams have one number everywhere.
inline std::uintptr_t legacy_as_zero(std::uintptr_t stream) { return stream == 1 ? 0 : stream; }
inline std::uintptr_t legacy_as_one(std::uintptr_t stream) { return stream == 0 ? 1 : stream; }

}  // namespace flatstep::python
