// The training step of a Transformer over flat buffers: everything in flatstep::flatstep.
// The Transformer itself is in flatstep/gpt.h (target flatstep::gpt).
#pragma once

#include "flatstep/convert.h"
#include "flatstep/dropout.h"
#include "flatstep/error.h"
#include "flatstep/grad.h"
#include "flatstep/layout.h"
#include "flatstep/loss.h"
#include "flatstep/memory.h"
#include "flatstep/optim.h"
#include "flatstep/runtime.h"
#include "flatstep/schedule.h"
#include "flatstep/types.h"
