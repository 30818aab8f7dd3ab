#include "densenet_deploy/error.hpp"

#include <cctype>

namespace densenet_deploy {
namespace {

/// One sentence each for what was found with what was expected, and for the remedy.
std::string sentence(const std::string& found, const std::string& expected,
                     const std::string& remedy) {
  std::string text = found;
  if (!expected.empty()) text += "; expected " + expected;
  if (!remedy.empty()) {
    text += ". " + remedy;
    char& first = text[text.size() - remedy.size()];
    first = static_cast<char>(std::toupper(static_cast<unsigned char>(first)));
  }
  const bool closed = !text.empty() && (text.back() == '.' || text.back() == '\n');
  return closed ? text : text + ".";
}

}  // namespace

Error::Error(const std::string& found, const std::string& expected, const std::string& remedy)
    : std::runtime_error(sentence(found, expected, remedy)),
      found_(found),
      expected_(expected),
      remedy_(remedy) {}

}  // namespace densenet_deploy
