// Blocks of a cluster (sm_90): neighbours in blockIdx.x that run at the same time and read each
// other's shared memory. Elsewhere, and in a launch without clusters, a block is a cluster of one.
#pragma once

#include "cuda/device.h"

namespace flatstep::cuda {

#if defined(FLATSTEP_CUDA_EMULATED)

inline int cluster_rank() { return emulator::cluster_rank(); }
inline int cluster_size() { return emulator::cluster_size(); }
inline void cluster_sync(emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::cluster_barrier(site);
}

template <class T>
T cluster_read(const T& mine, int rank,
               emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "one or two words");
  return *static_cast<const T*>(emulator::cluster_address(&mine, sizeof(T), rank, site));
}

inline int cluster_index() { return static_cast<int>(blockIdx.x) / cluster_size(); }
inline int cluster_count() { return static_cast<int>(gridDim.x) / cluster_size(); }

// The emulated barrier has no halves: all of it is the second.
inline void cluster_arrive() {}
inline void cluster_wait(emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  if (emulator::cluster_size() > 1) emulator::cluster_barrier(site);
}

#else

// Defines a function for a register of sm_90; elsewhere it returns what a block alone has.
#  if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#    define FLATSTEP_CLUSTER_NUMBER(function, name, alone) \
      __device__ __forceinline__ int function() {          \
        int number;                                        \
        asm("mov.u32 %0, %%" name ";" : "=r"(number));     \
        return number;                                     \
      }
#  else
#    define FLATSTEP_CLUSTER_NUMBER(function, name, alone) \
      __device__ __forceinline__ int function() { return static_cast<int>(alone); }
#  endif

// The place of this block in its cluster, from 0, and the number of blocks in it.
FLATSTEP_CLUSTER_NUMBER(cluster_rank, "cluster_ctarank", 0)
FLATSTEP_CLUSTER_NUMBER(cluster_size, "cluster_nctarank", 1)
// The place of this cluster in the grid, and how many there are.
FLATSTEP_CLUSTER_NUMBER(cluster_index, "clusterid.x", blockIdx.x)
FLATSTEP_CLUSTER_NUMBER(cluster_count, "nclusterid.x", gridDim.x)
#  undef FLATSTEP_CLUSTER_NUMBER

// A barrier of all threads of the cluster; what they wrote before to shared memory can be read
// after it. Also the last thing before a block ends whose memory others have read.
__device__ __forceinline__ void cluster_sync() {
#  if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_size() > 1) {
    asm volatile(
        "barrier.cluster.arrive.release;\n\t"
        "barrier.cluster.wait.acquire;" ::
            : "memory");
    return;
  }
#  endif
  __syncthreads();
}

// The two halves of a barrier of the cluster; for what comes between them nobody waits. What was
// read of other blocks, and used, before the first is read before any of them passes the second. It
// says nothing of what was written.
__device__ __forceinline__ void cluster_arrive() {
#  if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_size() > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#  endif
}
__device__ __forceinline__ void cluster_wait() {
#  if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_size() > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#  endif
}

// The variable that lies where `mine` does, in shared memory of the cluster's block `rank`.
template <class T>
__device__ __forceinline__ T cluster_read(const T& mine, int rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "one or two words");
#  if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(&mine));
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  T value;
  if constexpr (sizeof(T) == 4) {
    std::uint32_t word;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(remote) : "memory");
    memcpy(&value, &word, sizeof value);
  } else {
    std::uint64_t word;
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(word) : "r"(remote) : "memory");
    memcpy(&value, &word, sizeof value);
  }
  return value;
#  else
  static_cast<void>(rank);
  return mine;
#  endif
}

#endif

}  // namespace flatstep::cuda
