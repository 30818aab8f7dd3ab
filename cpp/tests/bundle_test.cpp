#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::Damaged;
using testing_support::read;
using testing_support::shipped;
using testing_support::write;

TEST(Bundle, ReadsTheShippedOne) {
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  const dd::Manifest& manifest = bundle.manifest();
  EXPECT_EQ(manifest.name, "fashion-mnist");
  EXPECT_EQ(manifest.input.name, "images");
  EXPECT_EQ(manifest.input.shape, (std::vector<std::int64_t>{1, 28, 28}));
  EXPECT_EQ(manifest.output.shape, (std::vector<std::int64_t>{10}));
  EXPECT_EQ(manifest.labels.size(), 10U);
  EXPECT_EQ(manifest.batch, (dd::Batch{1, 8, 64}));
  EXPECT_EQ(manifest.preprocessing.mean, std::vector<double>{0.286});
  EXPECT_EQ(manifest.tolerances.at(dd::Precision::fp32).max_abs, 1e-3);
  EXPECT_EQ(bundle.golden_input().rows(), bundle.golden_output().rows());
  EXPECT_EQ(bundle.sample_input().rows(), 16);
}

TEST(Bundle, GivesEachBackendItsOwnGraph) {
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  EXPECT_EQ(bundle.model(dd::Precision::fp32, dd::Backend::openvino),
            shipped() / "onnxruntime" / "fp32.onnx");
  EXPECT_EQ(bundle.model(dd::Precision::fp16, dd::Backend::openvino), shipped() / "fp16.onnx");
  EXPECT_EQ(bundle.model(dd::Precision::fp32, dd::Backend::tensorrt_rtx), shipped() / "fp32.onnx");
}

TEST(Bundle, MayHaveUnicodeInItsPath) {
  const testing_support::Scratch scratch;
  const auto path = scratch / std::filesystem::u8path(u8"b\u00fcndel \u6a21\u578b").string();
  std::filesystem::copy(shipped(), path, std::filesystem::copy_options::recursive);
  EXPECT_EQ(dd::Bundle::open(path).sample_input().rows(), 16);
}

TEST(Bundle, RefusesWhatIsNone) {
  const testing_support::Scratch scratch;
  EXPECT_REFUSED(dd::Bundle::open(scratch / "nothing"), dd::BundleError, "is not a bundle");
  write(scratch / "manifest.json", "{}");
  EXPECT_REFUSED(dd::Bundle::open(scratch / ""), dd::BundleError,
                 "schema version null; expected 2");
}

TEST(Bundle, ReportsEveryProblemOfTheManifestTogether) {
  const Damaged bundle;
  bundle.replace("\"speed_only\": false", "\"speed_only\": 0, \"sped\": 1");
  bundle.replace("\"height\": 28", "\"height\": \"28\"");
  const std::string refusal = bundle.refusal();
  EXPECT_NE(refusal.find("3 problems"), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("speed_only is 0, expected true or false"), std::string::npos);
  EXPECT_NE(refusal.find("unknown key \"sped\""), std::string::npos);
  EXPECT_NE(refusal.find("preprocessing height is \"28\", expected an integer"), std::string::npos);
}

TEST(Bundle, StopsAtTheFirstFewOfMillionsOfProblems) {
  const Damaged bundle;
  std::string zeros = "0";
  for (int index = 0; index < 3'000'000; ++index) zeros += ",0";
  bundle.replace("\"labels\": [", "\"labels\": [" + zeros + ", ");
  const std::string refusal = bundle.refusal();
  EXPECT_NE(refusal.find("20 or more problems"), std::string::npos) << refusal.substr(0, 300);
  EXPECT_LT(refusal.size(), 3000U);
}

TEST(Bundle, RefusesFilesThatAreNotWhatTheManifestSays) {
  const Damaged bundle;
  const std::string graph = read(bundle / "fp16.onnx");
  write(bundle / "fp16.onnx", graph.substr(0, graph.size() / 2));
  std::string other = read(bundle / "fp32.onnx");
  other[other.size() / 2] ^= 1;
  write(bundle / "fp32.onnx", other);
  std::filesystem::remove(bundle / "report.md");
  const std::string refusal = bundle.refusal();
  EXPECT_NE(refusal.find("3 problems"), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("fp16.onnx has 195963 bytes, the manifest says 391926"),
            std::string::npos);
  EXPECT_NE(refusal.find("fp32.onnx does not have the SHA-256"), std::string::npos);
  EXPECT_NE(refusal.find("report.md is missing"), std::string::npos);
}

TEST(Bundle, RefusesSwappedFiles) {
  const Damaged bundle;
  std::filesystem::rename(bundle / "fp32.onnx", bundle / "other");
  std::filesystem::rename(bundle / "fp16.onnx", bundle / "fp32.onnx");
  std::filesystem::rename(bundle / "other", bundle / "fp16.onnx");
  EXPECT_NE(bundle.refusal().find("2 problems"), std::string::npos);
}

class PathOf : public testing::TestWithParam<const char*> {};

TEST_P(PathOf, LeavesTheBundleAndIsRefused) {
  const Damaged bundle;
  bundle.replace("\"fp16.onnx\": {", std::string("\"") + GetParam() + "\": {");
  EXPECT_NE(bundle.refusal().find("leaves the bundle"), std::string::npos) << bundle.refusal();
}

INSTANTIATE_TEST_SUITE_P(Escapes, PathOf,
                         testing::Values("../fp16.onnx", "/etc/passwd", "a/../../b", "C:fp16.onnx",
                                         "a\\\\b", "a\\u0000b", "", "."));

TEST(Bundle, RefusesLinksThatLeadOutside) {
  const Damaged bundle;
  std::filesystem::remove(bundle / "fp16.onnx");
  std::filesystem::create_symlink(shipped() / "fp16.onnx", bundle / "fp16.onnx");
  EXPECT_NE(bundle.refusal().find("fp16.onnx links outside the bundle"), std::string::npos);
}

TEST(Bundle, RefusesDeepNests) {
  const Damaged bundle;
  const int depth = 200'000;
  bundle.replace("\"calibration\": {", "\"nest\": " + std::string(depth, '[') +
                                           std::string(depth, ']') + ", \"calibration\": {");
  EXPECT_NE(bundle.refusal().find("nest more than"), std::string::npos);
}

TEST(Bundle, RefusesSizesNoMachineHas) {
  const Damaged bundle;
  bundle.replace("\"height\": 28", "\"height\": 2000000000");
  EXPECT_NE(bundle.refusal().find("2000000000 is not in 0..64000000"), std::string::npos);
}

TEST(Bundle, RefusesAManifestThatIsTooLarge) {
  const Damaged bundle;
  bundle.replace("\"calibration\": {", std::string(17 << 20, ' ') + "\"calibration\": {");
  EXPECT_NE(bundle.refusal().find("at most 16777216"), std::string::npos);
}

TEST(Bundle, RefusesGoldenOutputsOfAnotherShape) {
  const Damaged bundle;
  const dd::Bundle opened = dd::Bundle::open(bundle.path());
  write_npy(bundle / "golden/output.npy", dd::Tensor{{2, 5}, std::vector<float>(10)});
  EXPECT_REFUSED(opened.golden_output(), dd::BundleError, "has shape (2, 5)");
}
