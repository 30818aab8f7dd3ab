#include "support.hpp"

using densenet_deploy::Error;

TEST(Error, SaysWhatWasFoundWhatWasExpectedAndWhatToDo) {
  const Error error("batch size 65", "1 to 64", "split the batch");
  EXPECT_STREQ(error.what(), "batch size 65; expected 1 to 64. Split the batch.");
  EXPECT_EQ(error.found(), "batch size 65");
  EXPECT_EQ(error.expected(), "1 to 64");
  EXPECT_EQ(error.remedy(), "split the batch");
}

TEST(Error, IsOneSentenceWhereOnlySomethingWasFound) {
  EXPECT_STREQ(Error("it is damaged").what(), "it is damaged.");
  EXPECT_STREQ(Error("it is damaged.").what(), "it is damaged.");
}

TEST(Names, AreThoseOfThePythonPackage) {
  EXPECT_EQ(densenet_deploy::parse_backend("tensorrt-rtx"), densenet_deploy::Backend::tensorrt_rtx);
  EXPECT_REFUSED(densenet_deploy::parse_precision("bf16"), densenet_deploy::BackendError,
                 "unknown precision 'bf16'; expected one of fp32, fp16, int8");
}
