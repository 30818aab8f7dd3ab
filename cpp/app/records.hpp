#pragma once

#include <densenet_deploy/densenet_deploy.hpp>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "select.hpp"

/// Results as the Python package writes them: `densenet-deploy report` reads both.
namespace app {

using Json = nlohmann::json;

/// What one row of a benchmark was measured with, beside its numbers.
struct MeasuredWith {
  Job job;
  int threads = 0;
  double load_seconds = 0.0;  ///< From opening the engine to its first answer.
};

Json record(const densenet_deploy::Measurement& measured, const MeasuredWith& with);
Json record(const densenet_deploy::Parity& parity, const Job& job, const std::string& source,
            const densenet_deploy::Tolerance& tolerance);
Json record(const std::vector<Skipped>& skipped);

/// Name, description, recipe and hashes of what the records are about.
Json identity(const densenet_deploy::Bundle& bundle);

/// Machine, system and versions. `devices` names what engines ran on.
Json environment(const std::set<std::string>& devices);

/// Most memory this process has held, in bytes; 0 where the system does not tell.
std::int64_t peak_memory_bytes();

/// A JSON file of ours; null where it is none, or nests deeper than any of ours.
Json read_json(const std::filesystem::path& path);

/// One JSON document as text, whatever its strings hold.
std::string text(const Json& value, int indent = -1);

/// Prints one JSON document to standard output.
void print(const Json& value);

/// `precision` on `backend`.
std::string title(const Job& job);

}  // namespace app
