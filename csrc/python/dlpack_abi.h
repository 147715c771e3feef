// The part of DLPack's C ABI (version 1, https://dmlc.github.io/dlpack) that flatstep reads:
// declared here so that no header of another project is needed to build.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flatstep::dlpack {

constexpr std::int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13;
constexpr std::uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;
constexpr std::uint32_t kMajorVersion = 1;
constexpr std::uint64_t kReadOnly = 1;

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means row-major
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct ManagedTensorVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// The table of C functions in a type's __dlpack_c_exchange_api__. They return 0, or -1 with a
// Python exception set, and leave the streams as they are.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  int (*export_tensor)(void* object, ManagedTensorVersioned** tensor);
  void* import_tensor;
  void* borrow_tensor;
  // The stream on which the library works now, as a cudaStream_t.
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

static_assert(sizeof(void*) != 8 || sizeof(Tensor) == 48, "DLPack ABI");
static_assert(sizeof(void*) != 8 || offsetof(ManagedTensorVersioned, tensor) == 32, "DLPack ABI");

}  // namespace flatstep::dlpack
