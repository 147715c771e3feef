#include "flatstep/memory.h"

#include "core/backend.h"

namespace flatstep {

void* allocate(std::size_t bytes, const Device& device) {
  return backend_of(device)->allocate(bytes);
}
void release(void* data, const Device& device) {
  if (data != nullptr) backend_of(device)->release(data);
}
void* allocate_status(std::size_t bytes, const Device& device) {
  return backend_of(device)->allocate_status(bytes);
}
void release_status(void* data, const Device& device) {
  if (data != nullptr) backend_of(device)->release_status(data);
}
void copy_to_device(void* to, const void* from, std::size_t bytes, const Device& device) {
  if (bytes > 0) backend_of(device)->copy_to_device(to, from, bytes);
}
void copy_to_host(void* to, const void* from, std::size_t bytes, const Device& device) {
  if (bytes > 0) backend_of(device)->copy_to_host(to, from, bytes);
}
void fill_zero(void* data, std::size_t bytes, const Device& device) {
  if (bytes > 0) backend_of(device)->fill_zero(data, bytes);
}
void synchronize(const Device& device) { backend_of(device)->synchronize(); }
void synchronize_device(const Device& device) { backend_of(device)->synchronize_device(); }
bool capturing(const Device& device) { return backend_of(device)->capturing(); }

}  // namespace flatstep
