// The kernel tables of this build and the one in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/table.h"
#include "flatstep/export.h"

namespace flatstep::cpu {

// Chosen on first use: the widest table that the processor can run, or the one FLATSTEP_ISA names.
// Throws InvalidArgument when that one is not in the build or cannot run here.
FLATSTEP_API const KernelTable& kernels();

// Names of the tables that this processor can run, slowest first, and the index of the one in use.
FLATSTEP_API std::vector<std::string> available_isas();
FLATSTEP_API std::size_t selected_isa();

}  // namespace flatstep::cpu
