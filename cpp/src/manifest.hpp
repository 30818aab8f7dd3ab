#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "densenet_deploy/bundle.hpp"

namespace densenet_deploy {

/// A manifest and the sizes of the files it names.
struct ReadManifest {
  Manifest manifest;
  std::map<std::string, std::int64_t> bytes;
};

/// Reads a manifest and checks that it is consistent; looks at no other file.
///
/// @throws BundleError  Says everything that is wrong.
ReadManifest read_manifest(const std::filesystem::path& path);

}  // namespace densenet_deploy
