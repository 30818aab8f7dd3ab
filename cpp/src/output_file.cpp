#include "densenet_deploy/output_file.hpp"

#include <random>
#include <system_error>
#include <utility>

#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy {

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code error;
  if (std::filesystem::is_directory(path_, error)) {
    throw DataError(shown(path_) + " is a directory", "the name of a file");
  }
  temporary_ = path_;
  temporary_ += "." + std::to_string(std::random_device{}()) + ".tmp";
  // Exclusively: what is there already, a link perhaps, is not followed.
  stream_ = std::fopen(temporary_.string().c_str(), "wbx");
  if (stream_ == nullptr) fail();
}

OutputFile::~OutputFile() {
  if (stream_ != nullptr) std::fclose(stream_);
  std::error_code error;
  if (!temporary_.empty()) std::filesystem::remove(temporary_, error);
}

void OutputFile::commit(std::string_view content) {
  const bool written = std::fwrite(content.data(), 1, content.size(), stream_) == content.size();
  const bool closed = std::fclose(std::exchange(stream_, nullptr)) == 0;
  std::error_code error;
  if (written && closed) std::filesystem::rename(temporary_, path_, error);
  if (!written || !closed || error) fail();
  temporary_.clear();
}

void OutputFile::fail() const {
  throw DataError(shown(path_) + " cannot be written", "", "check the folder and free space");
}

}  // namespace densenet_deploy
