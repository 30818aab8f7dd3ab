#pragma once

#include <gtest/gtest.h>

#include <densenet_deploy/densenet_deploy.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

namespace testing_support {

namespace fs = std::filesystem;

inline fs::path shipped() { return SHIPPED_BUNDLE; }

inline std::string read(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

/// A folder of this test's own, gone at its end.
class Scratch {
 public:
  Scratch() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ =
        fs::temp_directory_path() / (std::string("densenet-deploy-") + test->test_suite_name() +
                                     "-" + test->name() + std::to_string(std::random_device{}()));
    fs::create_directories(path_);
  }
  ~Scratch() { fs::remove_all(path_); }

  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

/// A copy of the shipped bundle that a test may harm.
class Damaged {
 public:
  Damaged() { fs::copy(shipped(), path(), fs::copy_options::recursive); }

  fs::path path() const { return scratch_ / "bundle"; }
  fs::path operator/(const std::string& name) const { return path() / name; }

  /// Replaces the first `before` of the manifest, which must be there.
  void replace(const std::string& before, const std::string& after) const {
    std::string text = read(path() / "manifest.json");
    const std::size_t place = text.find(before);
    ASSERT_NE(place, std::string::npos) << before;
    write(path() / "manifest.json", text.replace(place, before.size(), after));
  }

  /// The error of opening it; empty where it opens.
  std::string refusal() const {
    try {
      densenet_deploy::Bundle::open(path());
    } catch (const densenet_deploy::BundleError& error) {
      return error.what();
    }
    return "";
  }

 private:
  Scratch scratch_;
};

}  // namespace testing_support

/// The statement throws an error of this type whose text has this part.
#define EXPECT_REFUSED(statement, type, part)                                               \
  try {                                                                                     \
    statement;                                                                              \
    ADD_FAILURE() << "nothing was thrown";                                                  \
  } catch (const type& thrown_) {                                                           \
    EXPECT_NE(std::string(thrown_.what()).find(part), std::string::npos) << thrown_.what(); \
  }
