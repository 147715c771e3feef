// Names, shapes and offsets of the tensors that share one flat buffer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "flatstep/export.h"

namespace flatstep {

// Decay rates of Adam's moments.
struct Betas {
  double beta1 = 0.9;
  double beta2 = 0.999;
};

struct LayoutEntry {
  std::string name;
  std::vector<std::int64_t> shape;     // row-major
  std::int64_t offset = 0;             // in elements from the start of the buffer
  std::int64_t size = 0;               // in elements
  double lr_scale = 1.0;               // multiplies the step's learning rate
  std::optional<double> weight_decay;  // replaces the optimizer's weight decay
  std::optional<Betas> betas;          // replace the optimizer's
};

// Tensors lie one behind the other, without padding, in the order in which they were added.
class FLATSTEP_API Layout {
 public:
  // Throws InvalidArgument for an empty or repeated name, a negative extent, a size beyond int64,
  // a scale or decay that is negative or not finite, or betas outside [0, 1).
  void add(const std::string& name, const std::vector<std::int64_t>& shape, double lr_scale = 1.0,
           std::optional<double> weight_decay = std::nullopt,
           std::optional<Betas> betas = std::nullopt);

  // Gives weight decay 0 to tensors of fewer than two dimensions (biases, norms) that have none of
  // their own.
  void leave_vectors_undecayed();

  const std::vector<LayoutEntry>& entries() const { return entries_; }
  std::int64_t size() const { return size_; }

  // Throws InvalidArgument when there is no such tensor.
  const LayoutEntry& at(const std::string& name) const;
  bool contains(const std::string& name) const { return index_.count(name) != 0; }

 private:
  std::vector<LayoutEntry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
  std::int64_t size_ = 0;
};

}  // namespace flatstep
