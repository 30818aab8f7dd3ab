#include "densenet_deploy/classifier.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace densenet_deploy {
namespace {

constexpr std::int64_t largest_batch = 64;

std::vector<std::vector<Candidate>> all_best(const Bundle& bundle, const Engine& engine,
                                             const Tensor& images, int top) {
  const Tensor logits = predict(bundle, engine, images);
  std::vector<std::vector<Candidate>> found;
  for (std::int64_t row = 0; row < logits.rows(); ++row) {
    found.push_back(best(logits.row(row), logits.row_size(), bundle.manifest().labels, top));
  }
  return found;
}

}  // namespace

Classifier::Classifier(const Bundle& bundle, const EngineOptions& options)
    : bundle_(bundle), engine_(Engine::load(bundle, options)) {}

std::vector<Candidate> Classifier::classify(const std::filesystem::path& image, int top) const {
  return classify(Image::read(image), top);
}

std::vector<Candidate> Classifier::classify(const Image& image, int top) const {
  return all_best(bundle_, engine_, bundle_.manifest().preprocessing.prepare(image), top).front();
}

std::vector<std::vector<Candidate>> Classifier::classify(const std::vector<Image>& images,
                                                         int top) const {
  return all_best(bundle_, engine_, bundle_.manifest().preprocessing.prepare(images), top);
}

std::vector<Candidate> best(const float* logits, std::size_t classes,
                            const std::vector<std::string>& labels, int top) {
  const double largest = *std::max_element(logits, logits + classes);
  std::vector<double> probabilities(classes);
  std::transform(logits, logits + classes, probabilities.begin(),
                 [&](float logit) { return std::exp(logit - largest); });
  const double sum = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  std::vector<int> order(classes);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  order.resize(std::min(classes, static_cast<std::size_t>(std::max(top, 0))));
  std::vector<Candidate> found;
  for (const int index : order) {
    const std::string label = labels.empty() ? std::to_string(index) : labels[index];
    found.push_back({index, label, probabilities[index] / sum});
  }
  return found;
}

Tensor predict(const Bundle& bundle, const Engine& engine, const Tensor& images) {
  if (!images.complete()) return engine.run(images);  // which says what is wrong
  const Batch& batch = bundle.manifest().batch;
  const std::int64_t size = std::max(batch.min, std::min(batch.max, largest_batch));
  if (batch.min <= images.rows() && images.rows() <= size) return engine.run(images);
  Tensor logits;
  logits.shape = {images.rows(), engine.output().shape.front()};
  for (std::int64_t start = 0; start < images.rows(); start += size) {
    const std::int64_t count = std::min(size, images.rows() - start);
    Tensor part;
    part.shape = images.shape;
    part.shape[0] = std::max(count, batch.min);
    part.values.assign(images.row(start), images.row(start + count));
    while (part.values.size() < part.shape[0] * images.row_size()) {
      part.values.insert(part.values.end(), images.row(start + count - 1),
                         images.row(start + count));
    }
    const Tensor found = engine.run(part);
    logits.values.insert(logits.values.end(), found.row(0), found.row(count));
  }
  return logits;
}

}  // namespace densenet_deploy
