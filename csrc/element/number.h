// The arithmetic of one element, written once for every device. Headers here put it into the
// namespace FLATSTEP_ELEMENTS, which whoever includes them defines before: cpu/kernels/vector.h as
// that of its instruction set, CUDA sources as cuda. There it has internal linkage. Functions are
// templates on F, a number or a vector of them; this header has what they need for numbers, and
// what cpu/kernels/vector.h adds for vectors must stand before the templates.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "element/qualifier.h"

#ifndef FLATSTEP_ELEMENTS
#  error "FLATSTEP_ELEMENTS names the namespace that the arithmetic is compiled into"
#endif

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

template <class A>
constexpr A kInfinite = std::numeric_limits<A>::infinity();
template <class A>
constexpr A kLargest = std::numeric_limits<A>::max();

FLATSTEP_ELEMENT std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

FLATSTEP_ELEMENT float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

FLATSTEP_ELEMENT std::uint64_t bits_of(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

FLATSTEP_ELEMENT double float_of(std::uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// a * b + c, rounded once where the instruction set can do it; GPUs can. The library's fma() on a
// processor without the instruction is a hundred times slower than the two roundings it would save.
#if defined(__CUDACC__) || defined(FLATSTEP_CUDA_EMULATED) || defined(__FMA__) || \
    defined(__ARM_FEATURE_FMA)
#  define FLATSTEP_HAS_FMA 1
FLATSTEP_ELEMENT float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
FLATSTEP_ELEMENT double multiply_add(double a, double b, double c) { return fma(a, b, c); }
#else
#  define FLATSTEP_HAS_FMA 0
FLATSTEP_ELEMENT float multiply_add(float a, float b, float c) { return a * b + c; }
FLATSTEP_ELEMENT double multiply_add(double a, double b, double c) { return a * b + c; }
#endif

FLATSTEP_ELEMENT float square_root(float x) { return sqrtf(x); }
FLATSTEP_ELEMENT double square_root(double x) { return sqrt(x); }

// value in every lane, or value.
template <class F, class T>
FLATSTEP_ELEMENT F splat(T value) {
  return F{} + value;
}

// Whether x is not below the limit, and v where that is so and 0 elsewhere.
FLATSTEP_ELEMENT bool at_least(float x, float limit) { return !(x < limit); }
FLATSTEP_ELEMENT bool at_least(double x, double limit) { return !(x < limit); }
FLATSTEP_ELEMENT float keep(bool where, float v) { return where ? v : 0.0f; }
FLATSTEP_ELEMENT double keep(bool where, double v) { return where ? v : 0.0; }

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
