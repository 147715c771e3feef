// Where the Transformer's tensors lie in the parameter buffer, or in the gradient buffer: in the
// order in which config.cpp adds them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "flatstep/layout.h"

namespace flatstep {

// Of one layer.
template <class T>
struct LayerTensors {
  T *ln_1_weight, *ln_1_bias, *c_attn_weight, *c_attn_bias, *attn_proj_weight, *attn_proj_bias;
  T *ln_2_weight, *ln_2_bias, *c_fc_weight, *c_fc_bias, *mlp_proj_weight, *mlp_proj_bias;

  LayerTensors(const Layout& layout, T* buffer, std::int64_t layer) {
    T** const tensors[] = {&ln_1_weight,      &ln_1_bias,      &c_attn_weight,   &c_attn_bias,
                           &attn_proj_weight, &attn_proj_bias, &ln_2_weight,     &ln_2_bias,
                           &c_fc_weight,      &c_fc_bias,      &mlp_proj_weight, &mlp_proj_bias};
    const std::size_t before = 2 + static_cast<std::size_t>(layer) * std::size(tensors);
    const LayoutEntry* entry = &layout.entries()[before];
    for (T** tensor : tensors) *tensor = buffer + entry++->offset;
  }
};

// Of the whole model.
template <class T>
struct SharedTensors {
  T *token_table, *position_table, *ln_f_weight, *ln_f_bias;

  SharedTensors(const Layout& layout, T* buffer) {
    const auto& entries = layout.entries();
    token_table = buffer + entries[0].offset;
    position_table = buffer + entries[1].offset;
    ln_f_weight = buffer + entries[entries.size() - 2].offset;
    ln_f_bias = buffer + entries.back().offset;
  }
};

}  // namespace flatstep
