// Classifies one image: minimal BUNDLE IMAGE

#include <cstdio>
#include <densenet_deploy/densenet_deploy.hpp>

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: minimal BUNDLE IMAGE\n"), 2;
  try {
    const auto bundle = densenet_deploy::Bundle::open(arguments[1]);  // verifies every hash
    const densenet_deploy::Classifier classifier(bundle);
    const auto best = classifier.classify(std::filesystem::path(arguments[2])).front();
    std::printf("%s %.1f %%\n", best.label.c_str(), 100 * best.probability);
  } catch (const densenet_deploy::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 2;
  }
}
