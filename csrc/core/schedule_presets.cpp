// The conventions of other libraries, one line each.
#include "core/schedule.h"

namespace flatstep {
namespace {

using Kind = ScheduleKind;
constexpr BeyondEnd kClamp = BeyondEnd::clamp, kAfter = BeyondEnd::after_total,
                    kRunOn = BeyondEnd::run_on;

struct Preset {
  Kind kind;
  Convention convention;
};

// The members of a Convention after the first six, by name.
Convention starting_at_min(Convention c) { return c.init_is_min = true, c; }
Convention ending_at(double min_lr, Convention c) { return c.min_lr = min_lr, c; }
Convention shaped(DecayShape shape, Convention c) { return c.shape = shape, c; }
Convention decaying_after_warmup(Convention c) { return c.decay_is_rest = true, c; }
Convention scaled(double scale, Convention c) { return c.scale = scale, c; }
Convention needing_warmup(Convention c) { return c.least_warmup = 1, c; }
Convention init_first(Convention c) { return c.init_is_first = true, c; }
Convention shrinking_min(Convention c) { return c.shrinks_min = true, c; }
Convention timescale_10000(Convention c) { return c.timescale_without_warmup = 10000, c; }
Convention three_linear_phases(Convention c) {
  c.pct_final = 0.85;
  return c.linear_is_three_phase = true, c;
}

// Columns: warm-up's first k, added to W, its least k; decay's first k; beyond the end.
const std::vector<Preset>& presets() {
  static const std::vector<Preset> table = {
      {Kind::warmup_constant, {"hf", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_constant, {"optax", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_constant, {"megatron", 0, 0, 0, 0, kClamp}},

      {Kind::warmup_linear, {"hf", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_linear, {"optax", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_linear, {"megatron", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_linear, {"torchtitan", 1, 0, 0, 0, kRunOn}},
      {Kind::warmup_linear, {"llm.c", 1, 0, 0, 0, kClamp}},

      // Hugging Face's "cosine" and "cosine_with_min_lr", then its "cosine_warmup_with_min_lr".
      {Kind::warmup_cosine, {"hf", 0, 0, 0, 0, kRunOn}},
      {Kind::warmup_cosine, init_first({"hf_cosine_warmup_with_min_lr", 1, 0, 0, 1, kRunOn})},
      {Kind::warmup_cosine, {"optax", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_cosine, {"megatron", 0, 0, 0, 0, kClamp}},
      {Kind::warmup_cosine, {"torchtitan", 1, 0, 0, 0, kRunOn}},
      {Kind::warmup_cosine, {"llm.c", 1, 0, 0, 0, kClamp}},
      {Kind::warmup_cosine, {"nanogpt", 1, 1, 0, 0, kClamp}},

      {Kind::polynomial, ending_at(1e-7, {"hf", 0, 0, 0, 0, kClamp})},
      {Kind::polynomial, {"optax", 0, 0, 0, 0, kClamp}},
      {Kind::polynomial, {"fairseq", 0, 0, 1, 0, kClamp}},

      {Kind::inverse_sqrt, timescale_10000({"hf", 0, 0, 0, 0, kRunOn})},
      {Kind::inverse_sqrt, needing_warmup({"fairseq", 0, 0, 0, 0, kRunOn})},
      {Kind::inverse_sqrt, {"megatron", 0, 0, 0, 0, kAfter}},

      {Kind::wsd, starting_at_min(shaped(DecayShape::cosine, {"hf", 0, 0, 0, 0, kClamp}))},
      {Kind::wsd, shaped(DecayShape::exponential, {"megatron", 0, 0, 0, 0, kClamp})},
      {Kind::wsd,
       decaying_after_warmup(shaped(DecayShape::linear, {"torchtitan", 1, 0, 0, 0, kRunOn}))},
      {Kind::wsd, {"llm.c", 1, 0, 0, 0, kClamp}},
      // fairseq's tri_stage.
      {Kind::wsd, shaped(DecayShape::geometric, {"fairseq", 0, 0, 0, 0, kClamp})},

      {Kind::one_cycle, {"torch", 0, 0, 0, 1, kAfter}},
      {Kind::one_cycle, three_linear_phases({"optax", 0, 0, 0, 0, kClamp})},

      {Kind::cosine_restarts, {"hf", 0, 0, 0, 0, kClamp}},
      {Kind::cosine_restarts, {"torch", 0, 0, 0, 0, kRunOn}},
      {Kind::cosine_restarts, starting_at_min(shrinking_min({"fairseq", 0, 0, 0, 0, kRunOn}))},
      {Kind::cosine_restarts, {"optax", 0, 0, 0, 0, kClamp}},

      {Kind::noam, {"annotated", 0, 0, 1, 0, kRunOn}},
      {Kind::noam, {"tensor2tensor", 0, 0, 0, 0, kRunOn}},
      // 5000 * 0.002 with Adam.
      {Kind::noam, scaled(10.0, {"tensor2tensor_legacy", 1, 0, 0, 0, kRunOn})},
  };
  return table;
}

}  // namespace

Convention convention_of(ScheduleKind kind, const std::string& preset) {
  if (preset == Convention().preset) return {};
  for (const Preset& row : presets()) {
    if (row.kind == kind && preset == row.convention.preset) return row.convention;
  }
  std::string known;
  for (const std::string& name : presets_of(kind))
    known += (known.empty() ? "'" : ", '") + name + "'";
  fail("preset", "'" + preset + "'", "one of " + known + " for " + name_of(kind));
}

std::vector<std::string> presets_of(ScheduleKind kind) {
  std::vector<std::string> names = {Convention().preset};
  for (const Preset& row : presets()) {
    if (row.kind == kind) names.emplace_back(row.convention.preset);
  }
  return names;
}

const char* name_of(ScheduleKind kind) {
  switch (kind) {
    case Kind::constant:
      return "constant";
    case Kind::warmup_constant:
      return "warmup_constant";
    case Kind::warmup_linear:
      return "warmup_linear";
    case Kind::warmup_cosine:
      return "warmup_cosine";
    case Kind::inverse_sqrt:
      return "inverse_sqrt";
    case Kind::noam:
      return "noam";
    case Kind::polynomial:
      return "polynomial";
    case Kind::wsd:
      return "wsd";
    case Kind::one_cycle:
      return "one_cycle";
    default:
      return "cosine_restarts";
  }
}

const char* name_of(DecayShape shape) {
  switch (shape) {
    case DecayShape::linear:
      return "linear";
    case DecayShape::cosine:
      return "cosine";
    case DecayShape::sqrt:
      return "sqrt";
    case DecayShape::exponential:
      return "exponential";
    default:
      return "geometric";
  }
}

}  // namespace flatstep
