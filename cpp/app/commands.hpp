#pragma once

#include <optional>
#include <string>
#include <vector>

/// The commands of densenet-infer: options in, exit code out.
namespace app {

/// What every command that loads a graph takes.
struct LoadOptions {
  std::string bundle;
  std::string backend;  ///< Empty: the first that can run.
  std::string precision = "fp32";
  int threads = 0;
  int device = 0;
};

struct ClassifyOptions {
  LoadOptions load;
  std::vector<std::string> images;
  int top = 3;
  std::string save_input, save_logits;  ///< .npy files; empty for none.
  bool json = false;
};

/// What commands that go through backends and precisions take.
struct SweepOptions {
  std::string bundle;
  std::vector<std::string> backends;    ///< Empty: all that can run here.
  std::vector<std::string> precisions;  ///< Empty: all of the bundle.
  int threads = 0;
  int device = 0;
  bool json = false;
};

struct VerifyOptions {
  SweepOptions sweep;
  std::string input, expected;  ///< .npy files instead of the bundle's golden ones.
};

struct BenchOptions {
  SweepOptions sweep;
  std::vector<std::int64_t> batch_sizes;
  double seconds = 3.0;
  std::string out;
};

struct SampleOptions {
  LoadOptions load;
  std::int64_t batch = 1;
  std::vector<std::string>
      images;  ///< Decode to probabilities of these instead of the engine alone.
};

int classify(const ClassifyOptions& options);
int verify(const VerifyOptions& options);
int bench(const BenchOptions& options);
int sample(const SampleOptions& options);
int backends(bool json);

}  // namespace app
