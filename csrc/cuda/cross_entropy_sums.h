// Loss and gradient of single classes, and sums over those that a thread has.
#pragma once

#include "cuda/arithmetic.h"
#include "cuda/cross_entropy.h"

namespace flatstep::cuda {
namespace {

// Two neighbours of a row.
template <class T>
struct PairOf {
  using Word = std::uint32_t;
  static __device__ __forceinline__ void split(Word word, float& first, float& second) {
    to_floats<T>(word, first, second);
  }
  static __device__ __forceinline__ Word join(float first, float second) {
    return from_floats<T>(first, second);
  }
  static __device__ __forceinline__ Word join(T first, T second) {
    return static_cast<Word>(first) | static_cast<Word>(second) << 16;
  }
  // The larger of the firsts and of the seconds; a NaN beside a number is left out.
  static __device__ __forceinline__ Word larger(Word a, Word b) { return larger_pairs<T>(a, b); }
};
template <>
struct PairOf<float> {
  struct alignas(8) Word {
    float first, second;
  };
  static __device__ __forceinline__ void split(Word word, float& first, float& second) {
    first = word.first;
    second = word.second;
  }
  static __device__ __forceinline__ Word join(float first, float second) { return {first, second}; }
  static __device__ __forceinline__ Word larger(Word a, Word b) {
    return {fmaxf(a.first, b.first), fmaxf(a.second, b.second)};
  }
};

constexpr int kWordBytes = 16;
template <class T>
constexpr int kOfWord = kWordBytes / static_cast<int>(sizeof(T));

// Elements from `address` to the first that begins a word.
template <class T>
__device__ __forceinline__ int before_word(const T* address) {
  const auto past = reinterpret_cast<std::uintptr_t>(address) % kWordBytes;
  return past == 0 ? 0 : static_cast<int>((kWordBytes - past) / sizeof(T));
}

// Calls body with a null pointer to the element type.
template <class Body>
__device__ __forceinline__ void with_type(DType dtype, const Body& body) {
  if (dtype == DType::f32) {
    body(static_cast<float*>(nullptr));
  } else if (dtype == DType::bf16) {
    body(static_cast<bf16_bits*>(nullptr));
  } else {
    body(static_cast<f16_bits*>(nullptr));
  }
}

__device__ __forceinline__ float load_element(const void* row, DType dtype, std::int64_t j) {
  float value = 0;
  with_type(dtype, [&](auto* type) {
    value = to_float(static_cast<decltype(type)>(const_cast<void*>(row))[j]);
  });
  return value;
}

__device__ __forceinline__ void store_element(void* row, DType dtype, std::int64_t j, float value) {
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    static_cast<T*>(row)[j] = from_float<T>(value);
  });
}

// The larger; NaN if x is.
__device__ __forceinline__ float at_least_or_nan(float x, float limit) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(limit));
  return result;
#else
  return x < limit ? limit : x;
#endif
}

constexpr float kLog2High = 1.442695040f, kLog2Low = 1.925963033e-8f;  // of e

// The exponential of a logit as the exact product of two numbers, of which the second is a power of
// two or 0.
struct Power {
  float fraction, scale;
};

// The unit of some logits (see Unit) and their largest: too large ones are shifted first.
struct SliceUnit {
  float shift, top;
  std::int32_t exponent;
  float magic;  // adding it to x / ln2 rounds to an integer, and leaves 127 + n - k in the low bits
  float lowest;  // logits below it count as it, and their exponentials as 0

  __device__ __forceinline__ explicit SliceUnit(float maximum)
      : shift(Unit<float>::in_range(maximum) ? 0.0f : maximum),
        top(Unit<float>::in_range(maximum) ? maximum : 0.0f),
        exponent(Unit<float>(top).exponent),
        magic(12582912.0f + 127.0f - static_cast<float>(exponent)),
        lowest(static_cast<float>((exponent - 127.0) * kLn2High)) {}

  // x / ln2 = n + t with |t| <= 1/2, the product exact to twice the precision, then 2^t by the
  // device and 2^(n - k) by its bits, which are those of 0 at the lowest logit. Error 1.7 ULP.
  __device__ __forceinline__ Power power(float x) const {
    const float shifted = fmaf(x, kLog2High, magic);
    const float n = shifted - magic;
    const float t = fmaf(x, kLog2Low, fmaf(x, kLog2High, -n));
    return {exp2_approx(t), float_of(bits_of(shifted) << 23)};
  }
  __device__ __forceinline__ float exponential(float x) const {
    const Power e = power(x);
    return e.fraction * e.scale;
  }

  // The same for a gradient, whose error counts beside the row's largest: x / ln2 - k is rounded
  // once and the device takes it whole. 2 ULP, and half an ULP for each power of two below 1.
  __device__ __forceinline__ float exponential_of_gradient(float x) const {
    return exp2_approx(fmaf(x, kLog2Low, fmaf(x, kLog2High, -static_cast<float>(exponent))));
  }
};

// The exponential of the largest logit in its unit.
__device__ __forceinline__ float top_of(float maximum) {
  const SliceUnit in(maximum);
  return in.exponential(at_least_or_nan(in.top, in.lowest));
}

// Which sums are taken: of exponentials; for the entropy; all, for label smoothing too.
enum class Sums { exponentials, entropy, all };

// Sums over the classes that a thread, a warp or a part has, `weighted` for the entropy, the last
// three when smoothing. See RowRecord.
struct PartSums {
  double rest, weighted;
  std::int32_t tops;      // largest logits
  std::int32_t unmasked;  // classes not masked
  double logits, allowed;
};

__device__ __forceinline__ void add(const PartSums& part, PartSums& sums) {
  sums.rest += part.rest;
  sums.weighted += part.weighted;
  sums.tops += part.tops;
  sums.unmasked += part.unmasked;
  sums.logits += part.logits;
  sums.allowed += part.allowed;
}

// What `take` makes of each of the sums that there are.
template <Sums kSums, class Take>
__device__ __forceinline__ PartSums with_each(const PartSums& part, const Take& take) {
  PartSums sums{};
  sums.rest = take(part.rest);
  sums.tops = take(part.tops);
  if (kSums != Sums::exponentials) sums.weighted = take(part.weighted);
  if (kSums == Sums::all) {
    sums.logits = take(part.logits);
    sums.allowed = take(part.allowed);
    sums.unmasked = take(part.unmasked);
  }
  return sums;
}

template <Sums kSums>
__device__ __forceinline__ PartSums sum_over_warp(const PartSums& part) {
  return with_each<kSums>(part, [](const auto& sum) { return warp_sum(sum); });
}

// Whether a thread's warp has the largest logit of the part, or one of them: others take a shorter
// loop.
enum class Largest { here, elsewhere };

// The exponential of a logit, for its gradient. When smoothing, a masked class gives -1, which
// tells it from one that underflowed.
template <bool kSmooth>
__device__ __forceinline__ float marked_exponential(const SliceUnit& in, float logit) {
  const float e = in.exponential_of_gradient(logit);
  return kSmooth && logit == -kInfinite<float> ? -1.0f : e;
}

// Adds up classes, in two halves.
template <Sums kSums, Largest kLargest>
class ClassSums {
 public:
  __device__ __forceinline__ explicit ClassSums(const SliceUnit& unit)
      : in_(unit), reference_(unit.top == -kInfinite<float> ? 0.0f : unit.top) {}

  // Returns the exponential, or -1 for a masked class when smoothing, as marked_exponential() but
  // rounded as sums are. weight() is that of the class, asked for when smoothing.
  template <class Weight>
  __device__ __forceinline__ float add(int half, float logit, const Weight& weight) {
    // Finite but for NaN, so that times an exponential of 0 its distance is 0.
    const float clamped = at_least_or_nan(logit, in_.lowest);
    const Power power = in_.power(clamped);
    const bool top = kLargest == Largest::here && logit >= in_.top;
    // Beside the largest the small terms would lose their digits.
    if (!top) rest_[half] = fmaf(power.fraction, power.scale, rest_[half]);
    if (kLargest == Largest::here) tops_ += top ? 1 : 0;
    const float e = power.fraction * power.scale;
    if (kSums != Sums::exponentials) {
      weighted_[half] = fmaf(e, clamped - reference_, weighted_[half]);
    }
    if (kSums != Sums::all) return e;
    const bool masked = logit == -kInfinite<float>;
    const float own = masked ? 0.0f : weight();
    logits_[half] = fmaf(own, masked ? 0.0f : logit - reference_, logits_[half]);
    allowed_[half] += own;
    unmasked_ += masked ? 0 : 1;
    return masked ? -1.0f : e;
  }

  __device__ __forceinline__ PartSums sums() const {
    return {both(rest_), both(weighted_), tops_, unmasked_, both(logits_), both(allowed_)};
  }

 private:
  static __device__ __forceinline__ double both(const float (&sums)[2]) {
    return static_cast<double>(sums[0]) + static_cast<double>(sums[1]);
  }

  SliceUnit in_;
  float reference_;
  float rest_[2] = {}, weighted_[2] = {}, logits_[2] = {}, allowed_[2] = {};
  int tops_ = 0, unmasked_ = 0;
};

// A row, or a stretch of it, with these sums in the unit of its largest logit.
__device__ __forceinline__ RowRecord record_of(const PartSums& sums, float largest) {
  RowRecord record{};
  record.rest = sums.rest;
  record.weighted = sums.weighted;
  record.logits = sums.logits;
  record.allowed = sums.allowed;
  const bool masked = largest == -kInfinite<float>;
  record.tops = masked ? 0.0 : sums.tops * static_cast<double>(top_of(largest));
  record.largest = largest;
  record.unmasked = sums.unmasked;
  return record;
}

// The block of element/ that a record is.
__device__ __forceinline__ CrossEntropyBlock block_of(const RowRecord& record) {
  const SliceUnit unit(record.largest);
  CrossEntropyBlock block;
  block.largest = block.maximum = static_cast<double>(record.largest);
  block.shift = static_cast<double>(unit.shift);
  block.exponent = unit.exponent;
  block.total = record.rest + record.tops;
  block.rest = record.rest;
  block.weighted = record.weighted;
  block.logits = record.logits;
  block.allowed = record.allowed;
  block.unmasked = record.unmasked;
  block.ties = 0;
  return block;
}

// What the gradient of a row is made of.
struct GradientFactors {
  float factor, spread;
  float constant;  // of every class, where `is_constant`
  bool is_constant;
};

// From the exponential, or the mark of a masked class, to the gradient of a class.
template <bool kSmooth, class Weight>
__device__ __forceinline__ float gradient_of_class(float e, const GradientFactors& gradient,
                                                   const Weight& weight) {
  if (!kSmooth) return e * gradient.factor;
  const float value = fmaf(e, gradient.factor, -(gradient.spread * weight()));
  return e == -1.0f ? 0.0f : value;
}

}  // namespace
}  // namespace flatstep::cuda
