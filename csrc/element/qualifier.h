// How functions of one element are declared, so that every device can compile them.
#pragma once

#if defined(__CUDACC__)
#  define FLATSTEP_ELEMENT __host__ __device__ __forceinline__
#else
#  define FLATSTEP_ELEMENT inline
#endif
