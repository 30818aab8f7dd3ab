/// densenet-infer: classify with a bundle, verify it, measure it.

#include <CLI/CLI.hpp>
#include <densenet_deploy/densenet_deploy.hpp>
#include <functional>
#include <iostream>

#include "commands.hpp"
#include "records.hpp"

namespace app {
namespace dd = densenet_deploy;

int backends(bool json) {
  Json list = Json::array();
  for (const dd::Backend backend : dd::all_backends) {
    const std::string reason = dd::why_unavailable(backend);
    const std::string version = dd::library_version(backend);
    if (json) {
      list.push_back({{"backend", to_string(backend)}, {"library", version}, {"reason", reason}});
    } else {
      std::cout << to_string(backend) << ": " << (reason.empty() ? "runs here" : reason)
                << (version.empty() ? "" : " (" + version + ")") << "\n";
    }
  }
  if (json) print({{"backends", list}});
  return 0;
}

namespace {

void add_threads(CLI::App& command, int& threads, int& device) {
  command.add_option("--threads", threads, "CPU threads of one request (default: all cores)")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--device", device, "Index of the GPU (default: 0)")
      ->check(CLI::NonNegativeNumber);
}

void add_load(CLI::App& command, LoadOptions& options) {
  command.add_option("bundle", options.bundle, "Bundle directory")->required();
  command.add_option("--backend", options.backend,
                     "What runs it, see `backends` (default: the first that can run it here)");
  command.add_option("--precision", options.precision, "fp32, fp16 or int8 (default: fp32)");
  add_threads(command, options.threads, options.device);
}

void add_sweep(CLI::App& command, SweepOptions& options) {
  command.add_option("bundle", options.bundle, "Bundle directory")->required();
  command
      .add_option("--backend", options.backends,
                  "Only this one; repeatable (default: every one that can run here)")
      ->allow_extra_args(false);
  command
      .add_option("--precision", options.precisions,
                  "Only this one; repeatable (default: all of the bundle)")
      ->allow_extra_args(false);
  add_threads(command, options.threads, options.device);
  command.add_flag("--json", options.json, "Print for machines");
}

using Run = std::function<int()>;

void add_classify(CLI::App& root, ClassifyOptions& options, Run& run) {
  CLI::App& command = *root.add_subcommand("classify", "Classify image files");
  add_load(command, options.load);
  command.add_option("images", options.images, "PNG or JPEG files")->required();
  command.add_option("--top", options.top, "Classes to print (default: 3)")
      ->check(CLI::PositiveNumber);
  command.add_option("--save-input", options.save_input,
                     "Write the normalised images: a .npy file");
  command.add_option("--save-logits", options.save_logits, "Write the logits: a .npy file");
  command.add_flag("--json", options.json, "Print for machines");
  command.callback([&] { run = [&] { return classify(options); }; });
}

void add_verify(CLI::App& root, VerifyOptions& options, Run& run) {
  CLI::App& command = *root.add_subcommand(
      "verify", "Compare the graphs with PyTorch's logits of the golden input; exit 1 on failure");
  add_sweep(command, options.sweep);
  command.add_option("--input", options.input, "Normalised images of your own: a .npy file");
  command.add_option("--expected", options.expected, "The reference's logits of them: a .npy file");
  command.callback([&] { run = [&] { return verify(options); }; });
}

void add_bench(CLI::App& root, BenchOptions& options, Run& run) {
  CLI::App& command = *root.add_subcommand("bench", "Measure latency and throughput");
  add_sweep(command, options.sweep);
  options.batch_sizes = {1};
  command.add_option("--batch", options.batch_sizes, "Batch sizes, such as 1,8 (default: 1)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command.add_option("--seconds", options.seconds, "Timed seconds of each row (default: 3)");
  command.add_option("--out", options.out, "Write the records, as densenet-deploy bench does");
  command.callback([&] { run = [&] { return bench(options); }; });
}

void add_sample(CLI::App& root, SampleOptions& options, Run& run) {
  CLI::App& command = *root.add_subcommand(
      "sample", "Answer each line of standard input with one timing in seconds, to take turns");
  add_load(command, options.load);
  command.add_option("images", options.images,
                     "Time these files, decode to probabilities, instead of the engine alone");
  command.add_option("--batch", options.batch, "Images per request (default: 1)")
      ->check(CLI::PositiveNumber);
  command.callback([&] { run = [&] { return sample(options); }; });
}

int parse_and_run(int count, char** arguments) {
  CLI::App root(
      "Runs the bundles of densenet-deploy. Exit codes: 0 pass, 1 a check failed, 2 bad input.",
      "densenet-infer");
  root.set_version_flag("--version", DENSENET_DEPLOY_VERSION);
  root.require_subcommand(1);
  Run run;
  ClassifyOptions classify_options;
  VerifyOptions verify_options;
  BenchOptions bench_options;
  SampleOptions sample_options;
  bool json = false;
  add_classify(root, classify_options, run);
  add_verify(root, verify_options, run);
  add_bench(root, bench_options, run);
  add_sample(root, sample_options, run);
  CLI::App& list =
      *root.add_subcommand("backends", "What this build has, and why the rest cannot run");
  list.add_flag("--json", json, "Print for machines");
  list.callback([&] { run = [&] { return backends(json); }; });
  try {
    root.parse(count, arguments);
  } catch (const CLI::ParseError& error) {
    return root.exit(error) == 0 ? 0 : 2;
  }
  return run();
}

}  // namespace
}  // namespace app

int main(int count, char** arguments) {
  try {
    return app::parse_and_run(count, arguments);
  } catch (const std::exception& error) {  // densenet_deploy::Error, or the machine's own limits
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
