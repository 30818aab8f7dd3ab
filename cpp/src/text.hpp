#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace densenet_deploy {

/// `a, b, c`.
inline std::string joined(const std::vector<std::string>& parts,
                          const std::string& separator = ", ") {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

/// A path as UTF-8, for messages.
inline std::string shown(const std::filesystem::path& path) { return path.u8string(); }

/// `(2, 3, 224, 224)`.
template <class Integers>
std::string shape_text(const Integers& shape) {
  std::string text;
  for (const auto size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

}  // namespace densenet_deploy
