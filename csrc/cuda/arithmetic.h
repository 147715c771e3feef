// The formulas of element/ for kernels.
#pragma once

#include "cuda/device.h"

#ifndef FLATSTEP_ELEMENTS
#  define FLATSTEP_ELEMENTS cuda
#endif
#include "element/cross_entropy_row.h"
