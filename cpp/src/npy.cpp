/// NumPy's .npy format, version 1 to 3, as far as a bundle needs it: float32 in C order.

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <string_view>

#include "densenet_deploy/error.hpp"
#include "densenet_deploy/output_file.hpp"
#include "densenet_deploy/tensor.hpp"
#include "files.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

constexpr std::uint64_t most_bytes = std::uint64_t{1} << 32;
constexpr std::size_t most_header = 10'000;  // NumPy refuses longer ones, too
constexpr std::string_view magic = "\x93NUMPY";

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& reason) {
  throw DataError(shown(path) + " is not a readable .npy file of float32 (" + reason + ")");
}

/// Length of the header and where it starts.
std::pair<std::size_t, std::size_t> header_place(const std::filesystem::path& path,
                                                 const std::vector<std::uint8_t>& bytes) {
  if (bytes.size() < 12 || std::memcmp(bytes.data(), magic.data(), magic.size()) != 0) {
    refuse(path, "no NumPy magic");
  }
  const int version = bytes[6];
  if (version < 1 || version > 3) refuse(path, "format version " + std::to_string(version));
  const int width = version == 1 ? 2 : 4;
  std::size_t length = 0;
  for (int index = width - 1; index >= 0; --index) length = length << 8 | bytes[8 + index];
  const std::size_t start = 8 + width;
  if (length > most_header || start + length > bytes.size()) refuse(path, "header cut short");
  return {start, length};
}

/// What follows `'key':` in the header, a Python literal; nothing where there is no such key.
std::string_view value_of(std::string_view header, const std::string& key) {
  const std::size_t place = header.find("'" + key + "':");
  if (place == std::string_view::npos) return {};
  header.remove_prefix(place + key.size() + 3);
  header.remove_prefix(std::min(header.find_first_not_of(' '), header.size()));
  return header;
}

/// The integers of a tuple such as `(2, 3)`.
std::vector<std::int64_t> parse_shape(const std::filesystem::path& path, std::string_view text) {
  const std::size_t end = text.find(')');
  const bool tuple = end != std::string_view::npos && text.front() == '(' &&
                     text.find_first_not_of("0123456789, ", 1) == end;
  if (!tuple) refuse(path, "no 'shape'");
  std::vector<std::int64_t> shape;
  for (std::size_t start = 1; start < end;) {
    const std::size_t first = text.find_first_not_of(", ", start);
    if (first == end) break;
    const std::size_t last = text.find_first_of(", )", first);
    const std::string number(text.substr(first, last - first));
    if (number.size() > 10) refuse(path, "a dimension of " + number);
    shape.push_back(std::stoll(number));
    start = last;
  }
  return shape;
}

std::vector<std::int64_t> parse_header(const std::filesystem::path& path, std::string_view header) {
  const std::string_view type = value_of(header, "descr");
  if (type.substr(0, 5) != "'<f4'") {
    refuse(path, "its type is " + std::string(type.substr(0, type.find(','))));
  }
  if (value_of(header, "fortran_order").substr(0, 5) != "False") refuse(path, "not in C order");
  return parse_shape(path, value_of(header, "shape"));
}

/// Bytes of a shape; the largest number where it does not fit.
std::uint64_t byte_count(const std::vector<std::int64_t>& shape) {
  std::uint64_t count = sizeof(float);
  for (const std::int64_t size : shape) {
    const auto factor = static_cast<std::uint64_t>(size);
    if (factor != 0 && count > std::numeric_limits<std::uint64_t>::max() / factor) {
      return std::numeric_limits<std::uint64_t>::max();
    }
    count *= factor;
  }
  return count;
}

}  // namespace

std::int64_t Tensor::rows() const { return shape.empty() ? 0 : shape.front(); }

bool Tensor::complete() const {
  const bool negative =
      std::any_of(shape.begin(), shape.end(), [](std::int64_t size) { return size < 0; });
  return !negative && !shape.empty() && byte_count(shape) == values.size() * sizeof(float);
}

std::size_t Tensor::row_size() const {
  if (shape.empty()) return 0;
  return std::accumulate(shape.begin() + 1, shape.end(), std::size_t{1},
                         [](std::size_t product, std::int64_t size) {
                           return product * static_cast<std::size_t>(size);
                         });
}

Tensor read_npy(const std::filesystem::path& path) {
  const std::vector<std::uint8_t> bytes = read_file(path, most_bytes);
  const auto [start, length] = header_place(path, bytes);
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + start, length);
  Tensor tensor;
  tensor.shape = parse_header(path, header);
  const std::size_t payload = bytes.size() - start - length;
  if (byte_count(tensor.shape) != payload) {
    refuse(path,
           "shape " + shape_text(tensor.shape) + " with " + std::to_string(payload) + " bytes");
  }
  tensor.values.resize(payload / sizeof(float));
  if (payload != 0) std::memcpy(tensor.values.data(), bytes.data() + start + length, payload);
  return tensor;
}

void write_npy(const std::filesystem::path& path, const Tensor& tensor) {
  const std::string shape = tensor.shape.size() == 1
                                ? "(" + std::to_string(tensor.shape.front()) + ",)"
                                : shape_text(tensor.shape);
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }";
  header.resize((header.size() + 10) / 64 * 64 + 64 - 10 - 1, ' ');  // the data start at 64 n
  header += '\n';
  std::string content(magic);
  content +=
      {'\1', '\0', static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
  content += header;
  content.append(reinterpret_cast<const char*>(tensor.values.data()),
                 tensor.values.size() * sizeof(float));
  OutputFile(path).commit(content);
}

}  // namespace densenet_deploy
