#pragma once

#include <cstdio>
#include <filesystem>
#include <string_view>

#include "densenet_deploy/export.hpp"

namespace densenet_deploy {

/// A file that is written whole or not at all: into a new sibling, which takes its name at the end.
/// Made before long work, it finds out early that the place cannot be written.
class DENSENET_DEPLOY_EXPORT OutputFile {
 public:
  /// @throws DataError  `path` is a directory, or its folder cannot be written.
  explicit OutputFile(std::filesystem::path path);
  /// Removes what was not committed.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Writes the content and gives the file its name.
  ///
  /// @throws DataError  It cannot be written; what was there before stays.
  void commit(std::string_view content);

 private:
  [[noreturn]] void fail() const;

  std::filesystem::path path_, temporary_;
  std::FILE* stream_ = nullptr;
};

}  // namespace densenet_deploy
