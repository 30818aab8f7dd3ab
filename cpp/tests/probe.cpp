/// One JSON request a line of standard input, one JSON answer a line of standard output:
///   {"open": BUNDLE}
///   {"preprocess": IMAGE, "height": ..., "width": ..., "mean": ..., "std": ..., "resize": ...,
///    "interpolation": ..., "pixels": FILE, "input": FILE.npy}

#include <densenet_deploy/densenet_deploy.hpp>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

namespace {

namespace dd = densenet_deploy;
using Json = nlohmann::json;

void preprocess(const Json& request) {
  dd::Preprocessing preprocessing;
  preprocessing.height = request["height"];
  preprocessing.width = request["width"];
  preprocessing.mean = request["mean"].get<std::vector<double>>();
  preprocessing.std = request["std"].get<std::vector<double>>();
  preprocessing.resize = request["resize"];
  if (request["interpolation"] == "bicubic") {
    preprocessing.interpolation = dd::Interpolation::bicubic;
  }
  const dd::Image image = dd::Image::read(request["preprocess"].get<std::string>());
  const dd::Image pixels = preprocessing.geometry(image);
  std::ofstream(request["pixels"].get<std::string>(), std::ios::binary)
      .write(reinterpret_cast<const char*>(pixels.pixels.data()),
             static_cast<std::streamsize>(pixels.pixels.size()));
  write_npy(request["input"].get<std::string>(), preprocessing.prepare(image));
}

Json answer(const Json& request) {
  try {
    if (request.contains("open")) dd::Bundle::open(request["open"].get<std::string>());
    if (request.contains("preprocess")) preprocess(request);
    return {{"error", nullptr}};
  } catch (const dd::Error& error) {
    return {{"error", error.what()}};
  }
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const auto replace = Json::error_handler_t::replace;
    std::cout << answer(Json::parse(line)).dump(-1, ' ', true, replace) << std::endl;
  }
}
