// Folders of Python packages that the bindings told the library of.
#pragma once

#include <string>
#include <vector>

namespace flatstep {

std::vector<std::string> package_folders();

}  // namespace flatstep
