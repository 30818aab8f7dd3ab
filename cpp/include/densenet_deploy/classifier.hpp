#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "densenet_deploy/bundle.hpp"
#include "densenet_deploy/engine.hpp"
#include "densenet_deploy/export.hpp"
#include "densenet_deploy/image.hpp"

namespace densenet_deploy {

/// A class an image may show.
struct Candidate {
  int index = 0;
  std::string label;         ///< The index where the bundle has no labels.
  double probability = 0.0;  ///< Softmax of the logits.
};

/// From images to classes: preprocessing, engine and softmax. As thread-safe as its engine.
class DENSENET_DEPLOY_EXPORT Classifier {
 public:
  /// @throws Error  See `Engine::load`.
  explicit Classifier(const Bundle& bundle, const EngineOptions& options = {});

  /// The `top` most probable classes, best first.
  ///
  /// @throws DataError     The image cannot be read or resized.
  /// @throws BackendError  The backend failed.
  std::vector<Candidate> classify(const Image& image, int top = 3) const;
  std::vector<Candidate> classify(const std::filesystem::path& image, int top = 3) const;

  /// The same for several images, in batches that the bundle allows.
  std::vector<std::vector<Candidate>> classify(const std::vector<Image>& images, int top = 3) const;

  const Engine& engine() const { return engine_; }
  const Bundle& bundle() const { return bundle_; }

 private:
  Bundle bundle_;
  Engine engine_;
};

/// The `top` most probable classes of one row of logits; of equal ones the first.
DENSENET_DEPLOY_EXPORT std::vector<Candidate> best(const float* logits, std::size_t classes,
                                                   const std::vector<std::string>& labels, int top);

/// Logits (N, classes) of any number of images, in batches the bundle allows; a last batch below
/// the least allowed size is padded and cut.
///
/// @throws BackendError  The backend failed.
DENSENET_DEPLOY_EXPORT Tensor predict(const Bundle& bundle, const Engine& engine,
                                      const Tensor& images);

}  // namespace densenet_deploy
