#pragma once

#include <string>
#include <vector>

namespace densenet_deploy {

using Problems = std::vector<std::string>;

/// One error of type E that reports several problems of the same subject together.
template <class E>
[[noreturn]] void throw_collected(const std::string& subject, const Problems& problems) {
  if (problems.size() == 1) throw E(subject + ": " + problems.front());
  std::string text = subject + ": " + std::to_string(problems.size()) + " problems";
  for (const std::string& problem : problems) text += "\n  - " + problem;
  throw E(text + "\n");
}

}  // namespace densenet_deploy
