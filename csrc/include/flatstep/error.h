// What flatstep throws. Every kind derives from a standard exception and from flatstep::Error, so
// that `catch (const flatstep::Error&)` takes them all. A message names the argument, what was got
// and what was expected.
#pragma once

#include <stdexcept>
#include <string>

#include "flatstep/export.h"

namespace flatstep {

class FLATSTEP_API Error {
 public:
  virtual ~Error();
  virtual const char* message() const noexcept = 0;
};

// A wrong shape, type, option or buffer. Nothing was written.
class FLATSTEP_API InvalidArgument : public std::invalid_argument, public Error {
 public:
  explicit InvalidArgument(const std::string& text) : std::invalid_argument(text) {}
  ~InvalidArgument() override;
  const char* message() const noexcept override { return what(); }
};

// A target or token outside its vocabulary. Nothing was written.
class FLATSTEP_API OutOfRange : public std::out_of_range, public Error {
 public:
  explicit OutOfRange(const std::string& text) : std::out_of_range(text) {}
  ~OutOfRange() override;
  const char* message() const noexcept override { return what(); }
};

// The call was right, but it cannot be carried out: no such device, a step already running,
// too many non-finite gradients in a row.
class FLATSTEP_API RuntimeFailure : public std::runtime_error, public Error {
 public:
  explicit RuntimeFailure(const std::string& text) : std::runtime_error(text) {}
  ~RuntimeFailure() override;
  const char* message() const noexcept override { return what(); }
};

}  // namespace flatstep
