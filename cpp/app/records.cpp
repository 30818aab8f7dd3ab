#include "records.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>
#endif

namespace app {
namespace dd = densenet_deploy;
namespace {

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

std::string cpu_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != line.npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::int64_t memory_gib() {
#ifdef _SC_PHYS_PAGES
  const double bytes = static_cast<double>(sysconf(_SC_PAGE_SIZE)) * sysconf(_SC_PHYS_PAGES);
  return std::llround(bytes / (1 << 30));
#else
  return 0;
#endif
}

std::string system_name() {
#if defined(__unix__) || defined(__APPLE__)
  utsname names{};
  if (uname(&names) == 0) return std::string(names.sysname) + " " + names.machine;
#endif
  return "unknown";
}

}  // namespace

Json record(const dd::Measurement& measured, const MeasuredWith& with) {
  Json latencies = Json::array();
  for (const double latency : measured.latencies) {
    latencies.push_back(std::round(latency * 1e7) / 1e7);
  }
  return {
      {"precision", to_string(with.job.precision)},
      {"backend", to_string(with.job.backend)},
      {"batch", measured.batch},
      {"threads", with.threads},
      {"load_seconds", with.load_seconds},
      {"warmup_seconds", measured.warmup_seconds},
      {"steady", measured.steady},
      {"requests", measured.latencies.size()},
      {"mean_seconds", measured.mean()},
      {"images_per_second", measured.images_per_second()},
      {"p50_seconds", optional(measured.percentile(50))},
      {"p90_seconds", optional(measured.percentile(90))},
      {"p99_seconds", optional(measured.percentile(99))},
      {"latencies", latencies},
  };
}

Json record(const dd::Parity& parity, const Job& job, const std::string& source,
            const dd::Tolerance& tolerance) {
  return {
      {"precision", to_string(job.precision)},
      {"backend", to_string(job.backend)},
      {"reference", "pytorch fp32"},
      {"source", source},
      {"images", parity.images},
      {"top1", nullptr},
      {"top5", nullptr},
      {"reference_top1", nullptr},
      {"agreement", parity.agreement},
      {"max_abs", parity.max_abs},
      {"cosine", parity.cosine},
      {"nonfinite", parity.nonfinite},
      {"tolerance",
       {{"top1_drop", tolerance.top1_drop},
        {"agreement", tolerance.agreement},
        {"max_abs", tolerance.max_abs},
        {"cosine", tolerance.cosine}}},
      {"failures", parity.failures},
      {"passed", static_cast<bool>(parity)},
  };
}

Json record(const std::vector<Skipped>& skipped) {
  Json list = Json::array();
  for (const Skipped& item : skipped) {
    list.push_back({{"backend", item.backend}, {"reason", item.reason}});
  }
  return list;
}

Json identity(const dd::Bundle& bundle) {
  const dd::Manifest& manifest = bundle.manifest();
  Json graphs = Json::object();
  for (const auto& [precision, file] : manifest.models) {
    graphs[to_string(precision)] = manifest.sha256.at(file);
  }
  for (const auto& [backend, files] : manifest.lowered) {
    for (const auto& [precision, file] : files) {
      graphs[backend + "/" + to_string(precision)] = manifest.sha256.at(file);
    }
  }
  return {{"name", manifest.name},
          {"description", manifest.description},
          {"recipe_digest", manifest.recipe_digest},
          {"graphs_sha256", graphs},
          {"manifest_sha256", bundle.digest()}};
}

Json environment(const std::set<std::string>& devices) {
  Json gpus = Json::array();
  for (const std::string& device : devices) {
    if (device != "CPU") gpus.push_back({{"name", device}});
  }
  Json packages = {{"densenet-infer", DENSENET_DEPLOY_VERSION}};
  for (const dd::Backend backend : dd::compiled_backends()) {
    const std::string version = dd::library_version(backend);
    packages[to_string(backend)] = version.substr(version.rfind(' ') + 1);
  }
  return {{"cpu", cpu_name()},          {"cores", dd::usable_cores()},
          {"memory_gib", memory_gib()}, {"gpus", gpus},
          {"system", system_name()},    {"compiler", DENSENET_DEPLOY_COMPILER},
          {"packages", packages}};
}

std::int64_t peak_memory_bytes() {
#if defined(__linux__)
  // Not getrusage: a process starts with the peak of the one that made it.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return 1024 * std::atoll(line.c_str() + 6);
  }
#elif defined(__APPLE__)
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) return usage.ru_maxrss;
#endif
  return 0;
}

Json read_json(const std::filesystem::path& path) {
  constexpr int deepest = 64;
  std::ifstream stream(path);
  bool shallow = true;
  const Json table = Json::parse(
      stream,
      [&](int depth, Json::parse_event_t, Json&) {
        shallow = shallow && depth <= deepest;
        return shallow;  // false drops what is below
      },
      false);
  return shallow && !table.is_discarded() ? table : Json();
}

std::string text(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

void print(const Json& value) { std::cout << text(value, 1) << "\n"; }

std::string title(const Job& job) {
  return to_string(job.precision) + " on " + to_string(job.backend);
}

}  // namespace app
