// Symbol visibility: everything is hidden unless marked FLATSTEP_API.
#pragma once

#if defined(_WIN32)
#  define FLATSTEP_API
#else
#  define FLATSTEP_API __attribute__((visibility("default")))
#endif
