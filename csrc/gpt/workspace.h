// The activations of one pass, laid out in one piece of memory that the caller owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "flatstep/gpt.h"
#include "gpt/ops.h"

namespace flatstep {

// A recomputing pass trains, but keeps only the layers' inputs.
enum class Pass { training, recomputing, inference };

struct LayerActivations {
  float* input;  // [rows, C] the residual stream before this layer
  LayerNormResult ln_1;
  float* qkv;        // [rows, 3C]
  float* attention;  // [rows, C]
  float* log_sum;    // [batch, heads, length]
  float* middle;     // [rows, C] the residual stream after attention
  LayerNormResult ln_2;
  float* slope;      // [rows, 4C] GELU's derivative; in inference its input
  float* activated;  // [rows, 4C]
};

// In an inference pass all layers share one set of buffers, and the gradients are null. In a
// recomputing pass they share all but their inputs; at the end the buffers hold the last layer's.
// The workspace of the loss lies over the buffers that only the layers' passes use.
struct Workspace {
  std::vector<LayerActivations> layers;
  float* output;  // [rows, C] the residual stream after the last layer
  LayerNormResult ln_f;
  void* loss_workspace;
  std::size_t loss_workspace_bytes;
  float* grad_stream;  // [rows, C]
  float* grad_branch;  // [rows, C], where the model drops
  float* grad_out;     // [rows, C] the gradient of the output of a norm or of attention
  float* scratch;

  std::size_t activation_bytes;  // of layers, output and ln_f

  Workspace(const GptConfig& config, SequenceShape shape, Pass pass, Arena& arena);
};

// All that a call works with. A small model's training pass takes the two halves of an even batch,
// side by side: threads that share nothing wait for nobody, and find in their own caches what they
// wrote. What is summed over the batch is then the sum of the halves', on any number of threads.
struct PassMemory {
  std::int64_t* tokens;          // [rows]
  std::int64_t* targets;         // [rows], ignored ones hold the ignore_index of the call
  SequenceShape shape;           // of a part
  std::vector<Workspace> parts;  // of the whole batch, or of its halves
  float* second_grads;           // [params] gradients of the second half, or null

  std::size_t bytes;        // of all of the above
  std::size_t token_bytes;  // of tokens and targets
  std::size_t activation_bytes;

  // Carves `base`; a null base only counts the bytes. params: how many the model has.
  PassMemory(const GptConfig& config, std::int64_t params, SequenceShape batch, Pass pass,
             void* base);
};

}  // namespace flatstep
