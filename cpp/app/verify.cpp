#include <cstdio>
#include <densenet_deploy/densenet_deploy.hpp>
#include <iostream>

#include "commands.hpp"
#include "records.hpp"
#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;
namespace {

/// Images and the reference's logits of them.
struct Reference {
  dd::Tensor input, logits;
  std::string source;
};

Reference read_reference(const dd::Bundle& bundle, const VerifyOptions& options) {
  if (options.input.empty()) {
    Reference golden{bundle.golden_input(), bundle.golden_output(), ""};
    golden.source = "golden input, " + std::to_string(golden.input.rows()) + " images";
    return golden;
  }
  Reference own{dd::read_npy(options.input), dd::read_npy(options.expected), ""};
  own.source = options.input + ", " + std::to_string(own.input.rows()) + " images";
  return own;
}

const dd::Tolerance& tolerance(const dd::Bundle& bundle, dd::Precision precision) {
  const auto found = bundle.manifest().tolerances.find(precision);
  if (found == bundle.manifest().tolerances.end()) {
    throw dd::BundleError("the manifest's recipe has no tolerances for " + to_string(precision));
  }
  return found->second;
}

void tell(const Job& job, const dd::Parity& parity) {
  std::printf("%s: agreement %.2f %%, max |d logit| %.3g, cosine %.6f: %s", title(job).c_str(),
              parity.agreement, parity.max_abs, parity.cosine, parity ? "pass" : "FAIL");
  for (std::size_t index = 0; index < parity.failures.size(); ++index) {
    std::printf("%s%s", index == 0 ? ": " : "; ", parity.failures[index].c_str());
  }
  std::printf("\n");
}

}  // namespace

int verify(const VerifyOptions& options) {
  if (options.input.empty() != options.expected.empty()) {
    throw dd::DataError("one of --input and --expected", "both, or neither");
  }
  const dd::Bundle bundle = dd::Bundle::open(options.sweep.bundle);
  const Selection selection = select(bundle, options.sweep);
  const Reference reference = read_reference(bundle, options);
  if (!options.sweep.json) std::cout << reference.source << ", compared with pytorch fp32\n";
  Json records = Json::array();
  bool passed = true;
  for (const Job& job : selection.jobs) {
    const dd::Engine engine = dd::Engine::load(bundle, engine_options(options.sweep, job));
    const dd::Tolerance& allowed = tolerance(bundle, job.precision);
    const dd::Parity parity =
        compare(reference.logits, predict(bundle, engine, reference.input), allowed);
    passed = passed && parity;
    if (options.sweep.json) {
      records.push_back(record(parity, job, reference.source, allowed));
    } else {
      tell(job, parity);
    }
  }
  if (options.sweep.json) {
    print({{"parity", records}, {"skipped", record(selection.skipped)}});
  } else {
    for (const Skipped& item : selection.skipped) {
      std::cout << "skipped " << item.backend << ": " << item.reason << "\n";
    }
  }
  return passed ? 0 : 1;
}

}  // namespace app
