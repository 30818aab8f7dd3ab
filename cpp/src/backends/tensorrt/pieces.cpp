#include "pieces.hpp"

#include <algorithm>
#include <cstdlib>
#include <tuple>

namespace densenet_deploy::detail {
namespace {

/// Least padding first, then the least maximum, then the one tuned for the closest size.
std::size_t tightest(std::int64_t rows, const std::vector<Batch>& profiles) {
  const auto cost = [&](const Batch& batch) {
    const std::int64_t padding = std::max<std::int64_t>(batch.min - rows, 0);
    return std::make_tuple(padding, batch.max, std::abs(batch.opt - rows));
  };
  std::size_t found = profiles.size();
  for (std::size_t index = 0; index < profiles.size(); ++index) {
    if (profiles[index].max < rows) continue;
    if (found == profiles.size() || cost(profiles[index]) < cost(profiles[found])) found = index;
  }
  return found;
}

}  // namespace

std::vector<Piece> pieces(std::int64_t rows, const std::vector<Batch>& profiles) {
  std::int64_t most = 0;
  for (const Batch& profile : profiles) most = std::max(most, profile.max);
  std::vector<Piece> cut;
  for (std::int64_t start = 0; start < rows; start += most) {
    const std::int64_t count = std::min(most, rows - start);
    const std::size_t profile = tightest(count, profiles);
    cut.push_back({start, count, profile, std::max(count, profiles[profile].min)});
  }
  return cut;
}

}  // namespace densenet_deploy::detail
