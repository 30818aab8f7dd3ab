#pragma once

#include <stdexcept>
#include <string>

#include "densenet_deploy/export.hpp"

namespace densenet_deploy {

/// Base of every exception this library throws for bad input or a missing capability.
class DENSENET_DEPLOY_EXPORT Error : public std::runtime_error {
 public:
  /// @param found     What was found, as a clause that can start a sentence.
  /// @param expected  What would have been right; may be empty.
  /// @param remedy    What the reader can do about it, as an imperative; may be empty.
  explicit Error(const std::string& found, const std::string& expected = {},
                 const std::string& remedy = {});

  const std::string& found() const noexcept { return found_; }
  const std::string& expected() const noexcept { return expected_; }
  const std::string& remedy() const noexcept { return remedy_; }

 private:
  std::string found_, expected_, remedy_;
};

/// An image or an array is missing or malformed.
class DENSENET_DEPLOY_EXPORT DataError : public Error {
 public:
  using Error::Error;
};

/// A bundle is damaged, tampered with or of another schema version.
class DENSENET_DEPLOY_EXPORT BundleError : public Error {
 public:
  using Error::Error;
};

/// A backend cannot run here, or refused a model or an input.
class DENSENET_DEPLOY_EXPORT BackendError : public Error {
 public:
  using Error::Error;
};

}  // namespace densenet_deploy
