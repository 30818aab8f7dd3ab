#include "manifest.hpp"

#include <algorithm>
#include <set>

#include "densenet_deploy/error.hpp"
#include "files.hpp"
#include "problems.hpp"
#include "table_reader.hpp"

namespace densenet_deploy {
namespace {

constexpr std::uint64_t most_manifest_bytes = 16 << 20;
constexpr int deepest = 64;  // tables within tables; a manifest has about five

}  // namespace

// Outside of the unnamed namespace: the templates of table_reader.hpp find these by their
// arguments.

struct FileEntry {
  std::int64_t bytes = 0;
  std::string sha256;
};

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       FileEntry& out) {
  TableReader reader(value, where, problems);
  reader.required("bytes", out.bytes).required("sha256", out.sha256).finish();
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       Batch& out) {
  std::vector<std::int64_t> sizes;
  const std::size_t before = problems.size();
  read_value(value, where, problems, sizes);
  if (problems.size() > before) return;
  if (sizes.size() != 3) return mistyped(value, where, "a list of 3", problems);
  out = {sizes[0], sizes[1], sizes[2]};
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       TensorInfo& out) {
  TableReader reader(value, where, problems);
  std::string dtype = "float32";
  reader.required("name", out.name).required("dtype", dtype);
  if (dtype != "float32") problems.add(where + " dtype is '" + dtype + "', expected float32");
  const Json* shape = reader.any("shape");
  reader.finish();
  if (shape == nullptr || !shape->is_array() || shape->empty()) {
    problems.add(where + " shape is " + (shape ? show_value(*shape) : "missing") +
                 ", expected a list");
    return;
  }
  const Json fixed(shape->begin() + 1, shape->end());  // the first is the batch
  read_value(fixed, where + " shape", problems, out.shape);
}

static void require_one_of(const std::string& value, const std::vector<std::string>& choices,
                           const std::string& where, Problems& problems) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
    problems.add(where + " is '" + value + "', expected one of: " + joined(choices));
  }
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       Interpolation& out) {
  std::string name;
  const std::size_t before = problems.size();
  read_value(value, where, problems, name);
  if (problems.size() > before) return;
  require_one_of(name, {"bilinear", "bicubic"}, where, problems);
  out = name == "bicubic" ? Interpolation::bicubic : Interpolation::bilinear;
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       Preprocessing& out) {
  std::int64_t height = 0, width = 0, resize = 0;
  TableReader reader(value, where, problems);
  const std::size_t before = problems.size();
  reader.required("height", height).required("width", width);
  reader.required("mean", out.mean).required("std", out.std).optional("resize", resize);
  reader.optional("interpolation", out.interpolation).finish();
  if (problems.size() > before) return;
  for (const std::int64_t size : {height, width, resize}) {
    if (size < 0 || size > max_pixels) {
      return problems.add(where + ": " + std::to_string(size) + " is not in 0.." +
                          std::to_string(max_pixels) + " pixels");
    }
  }
  out.height = static_cast<int>(height);
  out.width = static_cast<int>(width);
  out.resize = static_cast<int>(resize);
  if (const std::string text = out.contradiction(); !text.empty()) {
    problems.add(where + ": " + text);
  }
}

/// A name that must be one of `choices`, which `parse` knows.
template <class T>
static void read_name(const Json& value, const std::string& where, Problems& problems,
                      T (*parse)(const std::string&), T& out) {
  std::string name;
  const std::size_t before = problems.size();
  read_value(value, where, problems, name);
  if (problems.size() > before) return;
  try {
    out = parse(name);
  } catch (const BackendError& error) {
    problems.add(where + ": " + error.found() + "; expected " + error.expected());
  }
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       Precision& out) {
  read_name(value, where, problems, &parse_precision, out);
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       Backend& out) {
  read_name(value, where, problems, &parse_backend, out);
  if (out != Backend::tensorrt && out != Backend::tensorrt_rtx) {
    problems.add(where + " is " + to_string(out) + ", which has no engines");
  }
}

static void check_batch(const Batch& batch, const std::string& where, Problems& problems) {
  if (1 <= batch.min && batch.min <= batch.opt && batch.opt <= batch.max) return;
  problems.add(where + " " + std::to_string(batch.min) + "," + std::to_string(batch.opt) + "," +
               std::to_string(batch.max) + " does not satisfy 1 <= min <= opt <= max");
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       EngineFile& out) {
  TableReader reader(value, where, problems);
  reader.required("file", out.file).required("backend", out.backend);
  reader.required("precision", out.precision).required("version", out.version);
  reader.required("profiles", out.profiles);
  reader.required("compute_capabilities", out.compute_capabilities);
  reader.optional("hardware_compatibility", out.hardware_compatibility);
  reader.optional("version_compatible", out.version_compatible);
  reader.optional("weights", out.weights).finish();
  require_one_of(out.hardware_compatibility, {"none", "ampere-plus", "same-compute-capability"},
                 where + " hardware_compatibility", problems);
  if (out.profiles.empty()) problems.add(where + " profiles is empty");
  for (const Batch& profile : out.profiles) check_batch(profile, where + " profile", problems);
  require_one_of(out.weights, {"embedded", "refittable", "stripped"}, where + " weights", problems);
}

static void read_value(const Json& value, const std::string& where, Problems& problems,
                       Tolerance& out) {
  TableReader reader(value, where, problems);
  reader.required("top1_drop", out.top1_drop).required("agreement", out.agreement);
  reader.required("max_abs", out.max_abs).required("cosine", out.cosine).finish();
}

namespace {

/// Tables whose keys are precisions.
template <class T>
void by_precision(const std::map<std::string, T>& named, const std::string& where,
                  Problems& problems, std::map<Precision, T>& out) {
  for (const auto& [name, value] : named) {
    try {
      out[parse_precision(name)] = value;
    } catch (const BackendError&) {
      problems.add(where + ": '" + name + "' is not a precision");
    }
  }
}

void read_tolerances(const Json* recipe, Problems& problems, Manifest& out) {
  if (recipe == nullptr) return problems.add("recipe is missing");
  if (!recipe->is_object()) return mistyped(*recipe, "recipe", "a table", problems);
  const auto verify = recipe->find("verify");
  if (verify == recipe->end() || !verify->is_object()) return;
  const auto tolerances = verify->find("tolerances");
  if (tolerances == verify->end()) return;
  std::map<std::string, Tolerance> named;
  read_value(*tolerances, "recipe verify tolerances", problems, named);
  by_precision(named, "recipe verify tolerances", problems, out.tolerances);
}

void read_table(const Json& table, Problems& problems, ReadManifest& read) {
  Manifest& out = read.manifest;
  std::int64_t version = 0;
  std::map<std::string, std::string> models;
  std::map<std::string, std::map<std::string, std::string>> lowered;
  std::map<std::string, FileEntry> files;
  std::map<std::string, std::int64_t> rewrites;
  TableReader reader(table, "", problems);
  reader.required("schema_version", version).required("name", out.name);
  reader.required("description", out.description).required("model", out.model);
  reader.required("speed_only", out.speed_only).required("target", out.target);
  reader.required("batch", out.batch).required("input", out.input).required("output", out.output);
  reader.required("preprocessing", out.preprocessing).required("labels", out.labels);
  reader.required("models", models).required("weights", out.weights);
  reader.required("golden", out.golden).required("recipe_digest", out.recipe_digest);
  reader.required("created_by", out.created_by).optional("lowered", lowered);
  reader.optional("engines", out.engines).optional("samples", out.samples);
  reader.optional("records", out.records).optional("rewrites", rewrites);
  reader.optional("files", files);
  const Json* calibration = reader.any("calibration");
  read_tolerances(reader.any("recipe"), problems, out);
  reader.finish();
  if (calibration && !calibration->is_object()) {
    mistyped(*calibration, "calibration", "a table", problems);
  }
  require_one_of(out.target, {"tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"}, "target",
                 problems);
  by_precision(models, "models", problems, out.models);
  for (const auto& [backend, graphs] : lowered) {
    by_precision(graphs, "lowered." + backend, problems, out.lowered[backend]);
  }
  for (const auto& [name, entry] : files) {
    out.sha256[name] = entry.sha256;
    read.bytes[name] = entry.bytes;
  }
}

bool is_inside(const std::string& name) {
  if (name.find_first_of(std::string("\\:\0", 3)) != std::string::npos) return false;
  const std::filesystem::path path = std::filesystem::u8path(name);
  if (path.is_absolute() || path.has_root_path()) return false;
  bool any = false;
  for (const auto& part : path) {
    if (part == "..") return false;
    any = any || (part != "." && !part.empty());
  }
  return any;
}

std::set<std::string> referenced(const Manifest& manifest) {
  std::set<std::string> names{manifest.weights};
  const auto add = [&](const auto& table) {
    for (const auto& [key, name] : table) names.insert(name);
  };
  add(manifest.models);
  add(manifest.golden);
  add(manifest.records);
  for (const auto& [backend, graphs] : manifest.lowered) add(graphs);
  for (const EngineFile& engine : manifest.engines) names.insert(engine.file);
  names.insert(manifest.samples.begin(), manifest.samples.end());
  return names;
}

void check_files(const Manifest& manifest, Problems& problems) {
  for (const auto& [name, hash] : manifest.sha256) {
    if (!is_inside(name)) problems.add("path " + show_value(name) + " leaves the bundle");
  }
  for (const std::string& name : referenced(manifest)) {
    if (manifest.sha256.count(name) == 0) {
      problems.add(show_value(name) + " is used but has no hash");
    }
  }
  for (const auto& [backend, graphs] : manifest.lowered) {
    for (const auto& [precision, file] : graphs) {
      if (manifest.models.count(precision) == 0) {
        problems.add(backend + " has a graph of its own for " + to_string(precision) +
                     ", which models lacks");
      }
    }
  }
  for (const char* key : {"input", "output"}) {
    if (manifest.golden.count(key) == 0) {
      problems.add(std::string("golden ") + key + " is missing");
    }
  }
}

void check_shapes(const Manifest& manifest, Problems& problems) {
  check_batch(manifest.batch, "batch", problems);
  const auto made = manifest.preprocessing.input_shape();
  const std::vector<std::int64_t> expected(made.begin(), made.end());
  if (manifest.input.shape != expected) {
    problems.add("input shape " + shape_text(manifest.input.shape) +
                 " is not what preprocessing makes, " + shape_text(expected));
  }
  const std::vector<std::int64_t>& logits = manifest.output.shape;
  if (logits.size() != 1 || logits[0] < 1 || logits[0] > max_pixels) {
    problems.add("output shape " + shape_text(logits) + " is not (classes)");
  } else if (!manifest.labels.empty() &&
             static_cast<std::size_t>(logits[0]) != manifest.labels.size()) {
    problems.add(std::to_string(manifest.labels.size()) + " labels do not name outputs of shape " +
                 shape_text(logits));
  }
}

/// Refuses what nests too deeply, which would overflow the stack of whoever walks through it.
Json parse(const std::filesystem::path& path) {
  const auto shallow = [](int depth, Json::parse_event_t, Json&) {
    if (depth > deepest)
      throw BundleError("tables nest more than " + std::to_string(deepest) + " deep");
    return true;
  };
  try {
    const std::vector<std::uint8_t> bytes = read_file(path, most_manifest_bytes);
    if (!bytes.empty() && bytes.front() == 0xef) throw BundleError("it has a byte order mark");
    return Json::parse(bytes.begin(), bytes.end(), shallow);
  } catch (const Json::exception& error) {
    throw BundleError(shown(path) + " is not JSON (" + error.what() + ")");
  } catch (const BundleError& error) {
    throw BundleError(shown(path) + " is no manifest (" + error.found() + ")");
  } catch (const DataError& error) {
    throw BundleError(error.found(), error.expected());
  }
}

}  // namespace

ReadManifest read_manifest(const std::filesystem::path& path) {
  const Json table = parse(path);
  const Json version = table.is_object() ? table.value("schema_version", Json()) : Json();
  if (!version.is_number_integer() || version != schema_version) {
    throw BundleError(shown(path) + " has schema version " + show_value(version),
                      std::to_string(schema_version),
                      "make the bundle again with this version of densenet-deploy");
  }
  Problems problems;
  ReadManifest read;
  read_table(table, problems, read);
  if (problems.empty()) {
    check_files(read.manifest, problems);
    check_shapes(read.manifest, problems);
  }
  if (!problems.empty()) throw_collected<BundleError>(shown(path), problems);
  return read;
}

}  // namespace densenet_deploy
