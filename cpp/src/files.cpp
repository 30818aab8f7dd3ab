#include "files.hpp"

#include <openssl/evp.h>

#include <array>
#include <fstream>
#include <memory>
#include <system_error>

#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

std::ifstream open_for_reading(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw DataError(shown(path) + " cannot be read");
  return stream;
}

}  // namespace

std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::uint64_t most) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    throw DataError(shown(path) + " does not exist", "", "check the path");
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    throw DataError(shown(path) + " is no regular file");
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw DataError(shown(path) + " cannot be read (" + error.message() + ")");
  if (size > most) {
    throw DataError(shown(path) + " has " + std::to_string(size) + " bytes",
                    "at most " + std::to_string(most));
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  std::ifstream stream = open_for_reading(path);
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (static_cast<std::uintmax_t>(stream.gcount()) != size) {
    throw DataError(shown(path) + " cannot be read to its end");
  }
  return bytes;
}

std::string sha256(const std::filesystem::path& path) {
  std::ifstream stream = open_for_reading(path);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        &EVP_MD_CTX_free);
  bool good = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  std::vector<char> block(std::size_t{1} << 18);
  while (good && stream) {
    stream.read(block.data(), static_cast<std::streamsize>(block.size()));
    good = EVP_DigestUpdate(context.get(), block.data(),
                            static_cast<std::size_t>(stream.gcount())) == 1;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (!good || stream.bad() || EVP_DigestFinal_ex(context.get(), digest.data(), &size) != 1) {
    throw DataError(shown(path) + " cannot be hashed");
  }
  std::string text;
  for (unsigned int index = 0; index < size; ++index) {
    constexpr char digits[] = "0123456789abcdef";
    text += {digits[digest[index] >> 4], digits[digest[index] & 15]};
  }
  return text;
}

}  // namespace densenet_deploy
