// Lists of arrays: parameters, gradients, state.
#pragma once

#include <cstdint>
#include <vector>

#include "python/array_arg.h"

namespace flatstep::python {

// All contiguous, and in one place: that of the first, unless one is given. Messages name the only
// one `name`, otherwise name[i].
std::vector<ArrayArg> take_arrays(const py::list& objects, const char* name, Access access,
                                  const Place* place = nullptr);

// Where the arrays are; the CPU for an empty list.
Place place_of(const std::vector<ArrayArg>& arrays);

// As many as the others, of the same shapes; `of` is the others' name.
void require_like(const std::vector<ArrayArg>& arrays, const std::vector<ArrayArg>& others,
                  const char* name, const char* of);

// The one dtype of all; f32 for an empty list.
DType common_dtype(const std::vector<ArrayArg>& arrays);

std::vector<void*> pointers_of(const std::vector<ArrayArg>& arrays);
std::vector<const void*> const_pointers_of(const std::vector<ArrayArg>& arrays);
std::vector<std::int64_t> sizes_of(const std::vector<ArrayArg>& arrays);

}  // namespace flatstep::python
