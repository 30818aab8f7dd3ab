#pragma once

#include <string>
#include <utility>
#include <vector>

namespace densenet_deploy {

/// What is wrong with one thing. Only the first few are kept: a damaged file may have millions.
class Problems {
 public:
  void add(std::string problem) {
    if (!full()) list_.push_back(std::move(problem));
  }

  bool empty() const { return list_.empty(); }
  /// Whether there is no point in looking for more.
  bool full() const { return list_.size() == most; }
  std::size_t size() const { return list_.size(); }
  const std::vector<std::string>& list() const { return list_; }

 private:
  static constexpr std::size_t most = 20;
  std::vector<std::string> list_;
};

/// One error of type E that reports several problems of the same subject together.
template <class E>
[[noreturn]] void throw_collected(const std::string& subject, const Problems& problems) {
  if (problems.size() == 1) throw E(subject + ": " + problems.list().front());
  const std::string count = std::to_string(problems.size()) + (problems.full() ? " or more" : "");
  std::string text = subject + ": " + count + " problems";
  for (const std::string& problem : problems.list()) text += "\n  - " + problem;
  throw E(text + "\n");
}

}  // namespace densenet_deploy
