#include "python/array_list.h"

namespace flatstep::python {

std::vector<ArrayArg> take_arrays(const py::list& objects, const char* name, Access access,
                                  const Place* place) {
  std::vector<ArrayArg> arrays;
  arrays.reserve(objects.size());
  Place first;
  for (std::size_t i = 0; i < objects.size(); ++i) {
    arrays.emplace_back(objects[i],
                        objects.size() == 1 ? ArgumentName(name) : ArgumentName(name, i), access,
                        place);
    arrays.back().require_contiguous();
    if (place == nullptr) {
      first = arrays.back().place();
      place = &first;
    }
  }
  return arrays;
}

Place place_of(const std::vector<ArrayArg>& arrays) {
  return arrays.empty() ? Place{} : arrays.front().place();
}

void require_like(const std::vector<ArrayArg>& arrays, const std::vector<ArrayArg>& others,
                  const char* name, const char* of) {
  if (arrays.size() != others.size()) {
    throw py::value_error(std::string(name) + ": got " + std::to_string(arrays.size()) +
                          " arrays, expected " + std::to_string(others.size()) +
                          ", one for each of " + of);
  }
  for (std::size_t i = 0; i < arrays.size(); ++i) arrays[i].require_shape(others[i].shape());
}

DType common_dtype(const std::vector<ArrayArg>& arrays) {
  const DType dtype = arrays.empty() ? DType::f32 : arrays.front().dtype();
  for (const ArrayArg& array : arrays) array.require_dtype(dtype);
  return dtype;
}

std::vector<void*> pointers_of(const std::vector<ArrayArg>& arrays) {
  std::vector<void*> pointers;
  for (const ArrayArg& array : arrays) pointers.push_back(array.data());
  return pointers;
}

std::vector<const void*> const_pointers_of(const std::vector<ArrayArg>& arrays) {
  const std::vector<void*> pointers = pointers_of(arrays);
  return {pointers.begin(), pointers.end()};
}

std::vector<std::int64_t> sizes_of(const std::vector<ArrayArg>& arrays) {
  std::vector<std::int64_t> sizes;
  for (const ArrayArg& array : arrays) sizes.push_back(array.size());
  return sizes;
}

}  // namespace flatstep::python
