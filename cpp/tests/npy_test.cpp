#include <cstring>

#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::Scratch;
using testing_support::write;

namespace {

std::string npy(const std::string& header, std::size_t payload, char version = 1) {
  std::string text("\x93NUMPY");
  text += {version, '\0', static_cast<char>(header.size()), '\0'};
  return text + header + std::string(payload, '\0');
}

std::string header(const std::string& shape, const std::string& type = "<f4",
                   const std::string& fortran = "False") {
  return "{'descr': '" + type + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}

}  // namespace

TEST(Npy, ComesBackAsItWasWritten) {
  const Scratch scratch;
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{3}, {2, 3, 4}, {1, 1, 1, 1, 7}, {0, 5}}) {
    dd::Tensor tensor{shape, {}};
    tensor.values.resize(static_cast<std::size_t>(tensor.rows()) * tensor.row_size());
    for (std::size_t index = 0; index < tensor.values.size(); ++index) tensor.values[index] = index;
    write_npy(scratch / "a.npy", tensor);
    EXPECT_EQ(dd::read_npy(scratch / "a.npy").shape, shape);
    EXPECT_EQ(dd::read_npy(scratch / "a.npy").values, tensor.values);
    const std::string bytes = testing_support::read(scratch / "a.npy");
    EXPECT_EQ((bytes.size() - 4 * tensor.values.size()) % 64, 0U);  // the data are aligned
  }
}

TEST(Npy, RefusesWhatItCannotRead) {
  const Scratch scratch;
  const auto refused = [&](const std::string& content, const std::string& reason) {
    write(scratch / "a.npy", content);
    EXPECT_REFUSED(dd::read_npy(scratch / "a.npy"), dd::DataError, reason);
  };
  refused("", "no NumPy magic");
  refused(npy(header("(2,)"), 8, 9), "format version 9");
  refused(npy(header("(2,)", "<f8"), 16), "its type is '<f8'");
  refused(npy(header("(2,)", "|O"), 16), "its type is '|O'");
  refused(npy(header("(2, 3)", "<f4", "True"), 24), "not in C order");
  refused(npy(header("(2,)"), 7), "with 7 bytes");
  refused(npy(header("(2,)"), 9), "with 9 bytes");
  refused(npy(header("(-1,)"), 4), "no 'shape'");
  refused(npy(header("(2"), 8), "no 'shape'");
  refused(npy("{}", 8), "its type is ");
  refused(npy(header("(4000000000, 4000000000, 4000000000)"), 4), "with 4 bytes");
  refused(npy(header("(99999999999999999999,)"), 4), "a dimension of");
  refused(std::string("\x93NUMPY\x01\0\xff\xff", 10) + "{}", "header cut short");
  EXPECT_REFUSED(dd::read_npy(scratch / "nothing.npy"), dd::DataError, "does not exist");
}

TEST(OutputFile, LeavesTheOldOneUntilItIsCommitted) {
  const Scratch scratch;
  write(scratch / "a.txt", "old");
  {
    const dd::OutputFile dropped(scratch / "a.txt");
    EXPECT_EQ(testing_support::read(scratch / "a.txt"), "old");
  }
  EXPECT_EQ(testing_support::read(scratch / "a.txt"), "old");
  dd::OutputFile(scratch / "a.txt").commit("new");
  EXPECT_EQ(testing_support::read(scratch / "a.txt"), "new");
  using Entries = std::filesystem::directory_iterator;
  EXPECT_EQ(std::distance(Entries(scratch / ""), Entries()), 1);  // nothing else is left
}

TEST(OutputFile, RefusesPlacesItCannotWrite) {
  const Scratch scratch;
  EXPECT_REFUSED(dd::OutputFile(scratch / ""), dd::DataError, "is a directory");
  EXPECT_REFUSED(dd::OutputFile(scratch / "no/a.txt"), dd::DataError, "cannot be written");
}
