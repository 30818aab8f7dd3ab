#pragma once

#include <cstdint>
#include <vector>

#include "densenet_deploy/bundle.hpp"

/// How a batch of any size runs in an engine's optimization profiles; the rules of the Python
/// package.
namespace densenet_deploy::detail {

/// Rows that run together.
struct Piece {
  std::int64_t start = 0;   ///< First row.
  std::int64_t rows = 0;    ///< Rows of the caller's.
  std::size_t profile = 0;  ///< Index of the optimization profile.
  std::int64_t batch = 0;   ///< Rows the engine computes: those, and copies of the last one.
};

/// Cuts a batch of at least one row into pieces as large as any profile allows. Each runs in the
/// tightest profile that holds it, and is padded where it is smaller than those that are large
/// enough.
std::vector<Piece> pieces(std::int64_t rows, const std::vector<Batch>& profiles);

}  // namespace densenet_deploy::detail
