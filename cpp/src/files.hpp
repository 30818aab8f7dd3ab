#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace densenet_deploy {

/// All bytes of a file.
///
/// @throws DataError  It is no regular file, of more than `most` bytes, or cannot be read.
std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::uint64_t most);

/// SHA-256 of a file as 64 hexadecimal digits.
///
/// @throws DataError  It cannot be read.
std::string sha256(const std::filesystem::path& path);

}  // namespace densenet_deploy
