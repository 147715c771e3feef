// The formulas of element/ for kernels.
#pragma once

#include "cuda/device.h"
#include "element/cross_entropy_row.h"
