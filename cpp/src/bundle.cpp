#include "densenet_deploy/bundle.hpp"

#include <algorithm>
#include <cmath>
#include <system_error>

#include "densenet_deploy/error.hpp"
#include "files.hpp"
#include "manifest.hpp"
#include "problems.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

namespace fs = std::filesystem;

constexpr const char* manifest_name = "manifest.json";

bool is_below(const fs::path& path, const fs::path& root) {
  const auto [end, rest] = std::mismatch(root.begin(), root.end(), path.begin(), path.end());
  return end == root.end();
}

/// What is wrong with one file of a bundle; empty where nothing is.
std::string file_problem(const fs::path& root, const std::string& name, std::int64_t bytes,
                         const std::string& expected) {
  const fs::path path = root / fs::u8path(name);
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return name + " is missing";
  const fs::path real = fs::canonical(path, error);
  if (error || !is_below(real, fs::canonical(root))) return name + " links outside the bundle";
  const std::uintmax_t size = fs::file_size(path, error);
  if (error) return name + " cannot be read (" + error.message() + ")";
  if (bytes < 0 || size != static_cast<std::uintmax_t>(bytes)) {
    return name + " has " + std::to_string(size) + " bytes, the manifest says " +
           std::to_string(bytes);
  }
  try {
    if (sha256(path) != expected) return name + " does not have the SHA-256 the manifest says";
  } catch (const DataError& unreadable) {
    return unreadable.found();
  }
  return "";
}

}  // namespace

Bundle Bundle::open(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path / manifest_name, error)) {
    throw BundleError(shown(path) + " is not a bundle: it has no " + manifest_name, "",
                      "make one with: densenet-deploy run");
  }
  ReadManifest read = read_manifest(path / manifest_name);
  Problems problems;
  for (const auto& [name, bytes] : read.bytes) {
    const std::string problem = file_problem(path, name, bytes, read.manifest.sha256[name]);
    if (!problem.empty()) problems.add(problem);
  }
  if (!problems.empty()) throw_collected<BundleError>("bundle " + shown(path), problems);
  return Bundle(path, std::make_shared<const Manifest>(std::move(read.manifest)));
}

fs::path Bundle::file(const std::string& name) const { return path_ / fs::u8path(name); }

fs::path Bundle::model(Precision precision, Backend backend) const {
  const auto found = manifest().models.find(precision);
  if (found == manifest().models.end()) {
    std::vector<std::string> known;
    for (const auto& [other, name] : manifest().models) known.push_back(to_string(other));
    throw BundleError(shown(path_) + " has no " + to_string(precision) + " graph", joined(known));
  }
  const auto own = manifest().lowered.find(to_string(backend));
  if (own != manifest().lowered.end()) {
    const auto graph = own->second.find(precision);
    if (graph != own->second.end()) return file(graph->second);
  }
  return file(found->second);
}

Tensor Bundle::golden(const std::string& key, const TensorInfo& promised) const {
  const fs::path path = file(manifest().golden.at(key));
  Tensor tensor;
  try {
    tensor = read_npy(path);
  } catch (const DataError& error) {
    throw BundleError(error.found());
  }
  const bool fits =
      tensor.shape.size() == promised.shape.size() + 1 && tensor.rows() > 0 &&
      std::equal(promised.shape.begin(), promised.shape.end(), tensor.shape.begin() + 1);
  if (!fits) {
    throw BundleError(shown(path) + " has shape " + shape_text(tensor.shape),
                      "(N, ...) of " + shape_text(promised.shape));
  }
  return tensor;
}

Tensor Bundle::golden_input() const { return golden("input", manifest().input); }

Tensor Bundle::golden_output() const { return golden("output", manifest().output); }

Tensor Bundle::sample_input() const {
  Preprocessing plain = manifest().preprocessing;
  plain.resize = 0;
  std::vector<Image> images;
  for (const std::string& name : manifest().samples) images.push_back(Image::read(file(name)));
  return plain.prepare(images);
}

std::string Bundle::digest() const { return sha256(path_ / manifest_name); }

}  // namespace densenet_deploy
