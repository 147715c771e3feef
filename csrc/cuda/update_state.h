// The state of a block of 128 elements, in a lane of a warp: load() begins to read it, apply()
// makes the new parameters and stores the new state. The formulae are in element/.
#pragma once

#include "core/rounding.h"
#include "cuda/arithmetic.h"
#include "cuda/update.h"
#include "cuda/update_lane.h"
#include "element/low_bit.h"
#include "element/update.h"

namespace flatstep::cuda {
namespace {

using Scalars = UpdateScalars<float>;

// New codes and, from the first lane, the block's new scale.
template <class Moment>
__device__ __forceinline__ void store_codes(void* base, std::uint16_t* scale, const Lane& lane,
                                            const float (&moments)[kEach],
                                            const RoundingBits4& random) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const std::uint32_t bits = Moment::magnitude(moments[j]);
    largest = bits > largest ? bits : largest;
  }
  const std::uint32_t new_scale = Moment::scale_of(warp_max(largest));
  if (threadIdx.x % kWarp == 0) *scale = static_cast<std::uint16_t>(new_scale);
  store<std::uint8_t>(base, lane, [&](int j) {
    return static_cast<std::uint8_t>(Moment::encode(moments[j], random.bits[j], new_scale));
  });
}

// The buffer is there where there is momentum.
__device__ __forceinline__ void sgd(float (&p)[kEach], const float (&g)[kEach],
                                    float (&buffer)[kEach], bool momentum, const Scalars& s) {
  with_sgd_variant(momentum, s.first_step, s.nesterov, [&](auto has, auto first, auto nesterov) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      p[j] = sgd_param<false, has, first, nesterov>(p[j], scaled_gradient(g[j], s), buffer[j], s);
    }
  });
}

struct SgdFull {
  static constexpr bool kRandom = false;
  float buffer[kEach] = {};

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t, const Lane& lane) {
    if (record.state1 != nullptr) load_moment(record.state1, lane, buffer);
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t, const Lane& lane,
                                        const RoundingBits4&, float (&p)[kEach],
                                        const float (&g)[kEach], const Scalars& s) {
    sgd(p, g, buffer, record.state1 != nullptr, s);
    if (record.state1 != nullptr) store_moment(record.state1, lane, buffer);
  }
};

struct SgdLowBit {
  static constexpr bool kRandom = true;
  Raw codes;
  std::uint32_t scale;

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t block,
                                       const Lane& lane) {
    codes = load_as<std::uint8_t>(record.state1, lane);
    scale = record.scale1[block];
    __syncwarp();  // the first lane will write the new one
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t block,
                                        const Lane& lane, const RoundingBits4& random,
                                        float (&p)[kEach], const float (&g)[kEach],
                                        const Scalars& s) {
    float buffer[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) buffer[j] = FirstMoment::decode(codes.bits[j], scale);
    sgd(p, g, buffer, true, s);
    store_codes<FirstMoment>(record.state1, record.scale1 + block, lane, buffer, random);
  }
};

template <bool kDecoupled>
struct AdamFull {
  static constexpr bool kRandom = false;
  float m[kEach], v[kEach], top[kEach];

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t, const Lane& lane) {
    load_moment(record.state1, lane, m);
    load_moment(record.state2, lane, v);
    if (record.state3 != nullptr) load_moment(record.state3, lane, top);
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t, const Lane& lane,
                                        const RoundingBits4&, float (&p)[kEach],
                                        const float (&g)[kEach], const Scalars& s) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      update_moments<kDecoupled, Rounding::native>(scaled_gradient(g[j], s), p[j], m[j], v[j], s);
    }
    store_moment(record.state1, lane, m);
    store_moment(record.state2, lane, v);
    if (record.state3 != nullptr) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) v[j] = top[j] > v[j] ? top[j] : v[j];
      store_moment(record.state3, lane, v);
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      p[j] = adam_param<kDecoupled, Rounding::native>(p[j], m[j], v[j], s);
    }
  }
};

template <bool kDecoupled>
struct AdamLowBit {
  static constexpr bool kRandom = true;
  Raw codes1, codes2;
  std::uint32_t scale1, scale2;

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t block,
                                       const Lane& lane) {
    codes1 = load_as<std::uint8_t>(record.state1, lane);
    codes2 = load_as<std::uint8_t>(record.state2, lane);
    scale1 = record.scale1[block];
    scale2 = record.scale2[block];
    __syncwarp();  // the first lane will write the new ones
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t block,
                                        const Lane& lane, const RoundingBits4& random,
                                        float (&p)[kEach], const float (&g)[kEach],
                                        const Scalars& s) {
    float m[kEach], v[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      m[j] = FirstMoment::decode(codes1.bits[j], scale1);
      v[j] = SecondMoment::decode(codes2.bits[j], scale2);
      update_moments<kDecoupled, Rounding::native>(scaled_gradient(g[j], s), p[j], m[j], v[j], s);
      p[j] = adam_param_short<kDecoupled>(p[j], m[j], v[j], s);
    }
    store_codes<FirstMoment>(record.state1, record.scale1 + block, lane, m, random);
    store_codes<SecondMoment>(record.state2, record.scale2 + block, lane, v, random);
  }
};

}  // namespace
}  // namespace flatstep::cuda
