#include "core/package_folders.h"

#include <mutex>

#include "flatstep/runtime.h"

namespace flatstep {
namespace {

std::mutex mutex;
std::vector<std::string>& folders() {
  static auto* list = new std::vector<std::string>();  // outlives every other static object
  return *list;
}

}  // namespace

void set_package_folders(std::vector<std::string> list) {
  const std::lock_guard<std::mutex> lock(mutex);
  folders() = std::move(list);
}

std::vector<std::string> package_folders() {
  const std::lock_guard<std::mutex> lock(mutex);
  return folders();
}

}  // namespace flatstep
