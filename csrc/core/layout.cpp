#include "flatstep/layout.h"

#include <limits>

#include "core/checks.h"
#include "core/optim.h"

namespace flatstep {

void Layout::add(const std::string& name, const std::vector<std::int64_t>& shape, double lr_scale,
                 std::optional<double> weight_decay, std::optional<Betas> betas) {
  if (name.empty()) fail("name", "an empty string", "the name of a tensor");
  if (contains(name)) fail("name", "'" + name + "' twice", "different names");
  LayoutEntry entry;
  entry.size = 1;
  for (const std::int64_t extent : shape) {
    if (extent < 0) fail("shape", to_text(extent) + " in '" + name + "'", "extents of 0 or more");
    if (extent > 0 && entry.size > std::numeric_limits<std::int64_t>::max() / extent) {
      fail("shape", "more than 2^63 elements in '" + name + "'", "a size within int64");
    }
    entry.size *= extent;
  }
  if (entry.size > std::numeric_limits<std::int64_t>::max() - size_) {
    fail("shape", "more than 2^63 elements in all", "a size within int64");
  }
  require(std::isfinite(lr_scale) && lr_scale >= 0, "lr_scale", lr_scale, "a finite number >= 0");
  if (weight_decay) {
    require(std::isfinite(*weight_decay) && *weight_decay >= 0, "weight_decay", *weight_decay,
            "a finite number >= 0");
  }
  if (betas) check_betas(*betas);
  entry.name = name;
  entry.shape = shape;
  entry.offset = size_;
  entry.lr_scale = lr_scale;
  entry.weight_decay = weight_decay;
  entry.betas = betas;
  index_[name] = entries_.size();
  size_ += entry.size;
  entries_.push_back(std::move(entry));
}

void Layout::leave_vectors_undecayed() {
  for (LayoutEntry& entry : entries_) {
    if (entry.shape.size() < 2 && !entry.weight_decay) entry.weight_decay = 0.0;
  }
}

const LayoutEntry& Layout::at(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) fail("name", "'" + name + "'", "a tensor of this layout");
  return entries_[found->second];
}

}  // namespace flatstep
