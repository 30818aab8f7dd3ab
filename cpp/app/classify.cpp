#include <cstdio>
#include <densenet_deploy/densenet_deploy.hpp>
#include <iostream>

#include "commands.hpp"
#include "records.hpp"
#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;
namespace {

Json classes(const std::vector<dd::Candidate>& candidates) {
  Json list = Json::array();
  for (const dd::Candidate& item : candidates) {
    list.push_back(
        {{"index", item.index}, {"label", item.label}, {"probability", item.probability}});
  }
  return list;
}

void tell(const std::string& image, const std::vector<dd::Candidate>& candidates) {
  std::string text;
  for (const dd::Candidate& item : candidates) {
    char share[16];
    std::snprintf(share, sizeof share, "%.1f %%", 100 * item.probability);
    text += (text.empty() ? "" : ", ") + item.label + " " + share;
  }
  std::cout << image << ": " << text << "\n";
}

/// Normalised images, one at a time: decoded photographs are large.
dd::Tensor read_images(const std::vector<std::string>& paths, const dd::Preprocessing& how) {
  dd::Tensor all;
  for (const std::string& path : paths) {
    const dd::Tensor one = how.prepare(dd::Image::read(path));
    if (all.shape.empty()) all.shape = one.shape;
    all.values.insert(all.values.end(), one.values.begin(), one.values.end());
  }
  all.shape.front() = static_cast<std::int64_t>(paths.size());
  return all;
}

}  // namespace

int classify(const ClassifyOptions& options) {
  const dd::Bundle bundle = dd::Bundle::open(options.load.bundle);
  const dd::Manifest& manifest = bundle.manifest();
  const dd::Tensor input = read_images(options.images, manifest.preprocessing);
  const dd::Engine engine = dd::Engine::load(bundle, engine_options(options.load));
  const dd::Tensor logits = predict(bundle, engine, input);
  if (!options.save_input.empty()) write_npy(options.save_input, input);
  if (!options.save_logits.empty()) write_npy(options.save_logits, logits);
  Json predictions = Json::array();
  for (std::int64_t row = 0; row < logits.rows(); ++row) {
    const auto found = dd::best(logits.row(row), logits.row_size(), manifest.labels, options.top);
    const std::string& image = options.images[static_cast<std::size_t>(row)];
    if (options.json) {
      predictions.push_back({{"image", image}, {"classes", classes(found)}});
    } else {
      tell(image, found);
    }
  }
  if (options.json) {
    print({{"predictions", predictions}, {"speed_only", manifest.speed_only}});
  } else if (manifest.speed_only) {
    std::cout << "speed only: the weights are seeded noise, so these answers mean nothing\n";
  }
  return 0;
}

}  // namespace app
