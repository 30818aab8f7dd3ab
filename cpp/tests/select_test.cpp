#include "backends/tensorrt/select.hpp"

#include "support.hpp"

namespace dd = densenet_deploy;
using dd::detail::misfit;
using dd::detail::Site;

namespace {

const Site here{dd::Backend::tensorrt, "10.16.1.11", "8.9"};

dd::EngineFile engine() {
  dd::EngineFile file;
  file.file = "a.plan";
  file.version = "10.16.1.11";
  file.compute_capabilities = {"8.9"};
  return file;
}

}  // namespace

TEST(Misfit, IsNoneForTheVersionAndDeviceItWasBuiltOn) { EXPECT_EQ(misfit(engine(), here), ""); }

TEST(Misfit, NamesVersionAndDevice) {
  dd::EngineFile other = engine();
  other.version = "10.16.1.12";
  other.compute_capabilities = {"8.0", "9.0"};
  EXPECT_EQ(misfit(other, here),
            "TensorRT 10.16.1.12, not 10.16.1.11 and compute capability 8.0 or 9.0, not 8.9");
  other.compute_capabilities.clear();
  EXPECT_NE(misfit(other, here).find("(not recorded)"), std::string::npos);
}

TEST(Misfit, LetsVersionCompatibleEnginesRunOnLaterVersions) {
  dd::EngineFile other = engine();
  other.version_compatible = true;
  other.version = "10.9.0.34";  // as numbers before 10.16, as text after it
  EXPECT_EQ(misfit(other, here), "");
  other.version = "11.0.0.1";
  EXPECT_EQ(misfit(other, here), "TensorRT 11.0.0.1 or later, not 10.16.1.11");
}

TEST(Misfit, LetsPortableEnginesRunFromAmpereOn) {
  dd::EngineFile other = engine();
  other.hardware_compatibility = "ampere-plus";
  other.compute_capabilities = {"8.0"};
  EXPECT_EQ(misfit(other, {dd::Backend::tensorrt, "10.16.1.11", "12.0"}), "");
  EXPECT_EQ(misfit(other, {dd::Backend::tensorrt, "10.16.1.11", "7.5"}),
            "compute capability 8.0 or later, not 7.5");
}

TEST(ChooseEngine, SaysThatThereIsNone) {
  const dd::Bundle bundle = dd::Bundle::open(testing_support::shipped());
  EXPECT_REFUSED(choose_engine(bundle, dd::Precision::fp32, here), dd::BackendError,
                 "has no tensorrt engine for fp32");
}
