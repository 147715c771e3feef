// Where the Transformer's tensors lie in the parameter buffer, or in the gradient buffer.
#pragma once

#include <string>

#include "flatstep/layout.h"

namespace flatstep {

// Of one layer.
template <class T>
struct LayerTensors {
  T *ln_1_weight, *ln_1_bias, *c_attn_weight, *c_attn_bias, *attn_proj_weight, *attn_proj_bias;
  T *ln_2_weight, *ln_2_bias, *c_fc_weight, *c_fc_bias, *mlp_proj_weight, *mlp_proj_bias;

  LayerTensors(const Layout& layout, T* buffer, std::int64_t layer) {
    const std::string prefix = "transformer.h." + std::to_string(layer) + ".";
    const auto at = [&](const char* name) { return buffer + layout.at(prefix + name).offset; };
    ln_1_weight = at("ln_1.weight"), ln_1_bias = at("ln_1.bias");
    c_attn_weight = at("attn.c_attn.weight"), c_attn_bias = at("attn.c_attn.bias");
    attn_proj_weight = at("attn.c_proj.weight"), attn_proj_bias = at("attn.c_proj.bias");
    ln_2_weight = at("ln_2.weight"), ln_2_bias = at("ln_2.bias");
    c_fc_weight = at("mlp.c_fc.weight"), c_fc_bias = at("mlp.c_fc.bias");
    mlp_proj_weight = at("mlp.c_proj.weight"), mlp_proj_bias = at("mlp.c_proj.bias");
  }
};

// Of the whole model.
template <class T>
struct SharedTensors {
  T *token_table, *position_table, *ln_f_weight, *ln_f_bias;

  SharedTensors(const Layout& layout, T* buffer)
      : token_table(buffer + layout.at("transformer.wte.weight").offset),
        position_table(buffer + layout.at("transformer.wpe.weight").offset),
        ln_f_weight(buffer + layout.at("transformer.ln_f.weight").offset),
        ln_f_bias(buffer + layout.at("transformer.ln_f.bias").offset) {}
};

}  // namespace flatstep
