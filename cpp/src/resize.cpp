#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace densenet_deploy {
namespace {

constexpr int fraction_bits = 32 - 8 - 2;  // 8-bit samples, and room for the sum's overshoot
constexpr std::int32_t half = 1 << (fraction_bits - 1);

/// The source samples that one target sample is the weighted mean of.
struct Span {
  int first = 0;
  int count = 0;
  std::size_t weights = 0;  // index of the first of its weights
};

/// Spans of the target samples first..first+count along one axis.
struct Filter {
  std::vector<std::int32_t> weights;
  std::vector<Span> spans;
};

/// A triangle of half width 1.
double bilinear(double distance) { return std::max(1.0 - distance, 0.0); }

/// Keys' cubic convolution with a = -0.5, of half width 2.
double bicubic(double distance) {
  constexpr double a = -0.5;
  const double x = distance;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

/// To the nearest, halves away from zero.
std::int32_t fixed_point(double weight) {
  const double scaled = weight * (1 << fraction_bits);
  return static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

Filter make_filter(int source, int target, int first, int count, Interpolation interpolation) {
  const bool cubic = interpolation == Interpolation::bicubic;
  const auto weigh = cubic ? &bicubic : &bilinear;
  const double scale = static_cast<double>(source) / target;
  const double stretch = std::max(scale, 1.0);
  const double support = (cubic ? 2.0 : 1.0) * stretch;  // half the width of the filter
  const auto most = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
  Filter filter;
  filter.weights.resize(most * static_cast<std::size_t>(count));
  std::vector<double> exact(most);
  for (int index = 0; index < count; ++index) {
    const double centre = (first + index + 0.5) * scale;
    const int low = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int high = std::min(static_cast<int>(centre + support + 0.5), source);
    double sum = 0;
    for (int x = low; x < high; ++x) {
      const double distance = std::abs((x - centre + 0.5) * (1.0 / stretch));
      sum += exact[x - low] = weigh(distance);
    }
    const std::size_t weights = most * static_cast<std::size_t>(index);
    for (int x = 0; x < high - low; ++x) {
      const double weight = sum != 0 ? exact[x] * (1.0 / sum) : exact[x];
      filter.weights[weights + x] = fixed_point(weight);
    }
    filter.spans.push_back({low, high - low, weights});
  }
  return filter;
}

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255));
}

/// Consecutive rows or columns.
struct Range {
  int first = 0;
  int count = 0;
};

/// All source samples that a filter reads.
Range sources(const Filter& filter) {
  const Span &first = filter.spans.front(), &last = filter.spans.back();
  return {first.first, last.first + last.count - first.first};
}

template <int channels>
void filter_row(const std::uint8_t* source, const Filter& filter, std::uint8_t* target) {
  for (const Span& span : filter.spans) {
    std::int32_t sums[channels];
    std::fill_n(sums, channels, half);
    const std::uint8_t* pixel = source + span.first * channels;
    const std::int32_t* weights = filter.weights.data() + span.weights;
    for (int x = 0; x < span.count; ++x, pixel += channels) {
      for (int channel = 0; channel < channels; ++channel) {
        sums[channel] += pixel[channel] * weights[x];
      }
    }
    for (int channel = 0; channel < channels; ++channel) *target++ = rounded(sums[channel]);
  }
}

/// Some rows of the image, filtered along x.
Image along_rows(const Image& image, const Filter& filter, const Range& rows) {
  Image result{static_cast<int>(filter.spans.size()), rows.count, image.channels, {}};
  const std::size_t stride = filter.spans.size() * static_cast<std::size_t>(image.channels);
  result.pixels.resize(stride * static_cast<std::size_t>(rows.count));
  const auto filter_one = image.channels == 1 ? &filter_row<1> : &filter_row<3>;
  for (int row = 0; row < rows.count; ++row) {
    const auto source = static_cast<std::size_t>(rows.first + row) * image.width * image.channels;
    filter_one(image.pixels.data() + source, filter, result.pixels.data() + row * stride);
  }
  return result;
}

/// Some columns of the image, filtered along y.
Image along_columns(const Image& image, const Filter& filter, const Range& columns) {
  Image result{columns.count, static_cast<int>(filter.spans.size()), image.channels, {}};
  const std::size_t stride = static_cast<std::size_t>(image.width) * image.channels;
  std::vector<std::int32_t> sums(static_cast<std::size_t>(columns.count) * image.channels);
  result.pixels.resize(sums.size() * filter.spans.size());
  std::uint8_t* target = result.pixels.data();
  for (const Span& span : filter.spans) {
    std::fill(sums.begin(), sums.end(), half);
    const std::uint8_t* row =
        image.pixels.data() + span.first * stride + columns.first * image.channels;
    for (int y = 0; y < span.count; ++y, row += stride) {
      const std::int32_t weight = filter.weights[span.weights + y];
      for (std::size_t x = 0; x < sums.size(); ++x) sums[x] += row[x] * weight;
    }
    for (const std::int32_t sum : sums) *target++ = rounded(sum);
  }
  return result;
}

/// The same filter over a source that begins at `first`.
Filter from(Filter filter, int first) {
  for (Span& span : filter.spans) span.first -= first;
  return filter;
}

/// Which pass Pillow 13 begins with: along columns where the height shrinks far more than the
/// width. Earlier versions always begin along rows; the results differ by one step at most.
bool columns_first(const Image& image, int width, int height) {
  return image.height - height > std::max(0, 2 * (image.width - width));
}

Image cropped(const Image& image, const Box& part) {
  Image result{part.width, part.height, image.channels, {}};
  const std::size_t row = static_cast<std::size_t>(part.width) * image.channels;
  result.pixels.reserve(row * part.height);
  for (int y = part.top; y < part.top + part.height; ++y) {
    const auto start = image.pixels.begin() +
                       (static_cast<std::ptrdiff_t>(y) * image.width + part.left) * image.channels;
    result.pixels.insert(result.pixels.end(), start, start + static_cast<std::ptrdiff_t>(row));
  }
  return result;
}

}  // namespace

Image resize(const Image& image, int width, int height, const Box& part,
             Interpolation interpolation) {
  const Range rows{part.top, part.height}, columns{part.left, part.width};
  const bool wide = image.width != width, high = image.height != height;
  if (!wide && !high) return cropped(image, part);  // Pillow leaves out a pass that changes nothing
  const Filter horizontal =
      wide ? make_filter(image.width, width, part.left, part.width, interpolation) : Filter();
  const Filter vertical =
      high ? make_filter(image.height, height, part.top, part.height, interpolation) : Filter();
  if (!wide) return along_columns(image, vertical, columns);
  if (!high) return along_rows(image, horizontal, rows);
  if (columns_first(image, width, height)) {
    const Range needed = sources(horizontal);
    return along_rows(along_columns(image, vertical, needed), from(horizontal, needed.first),
                      {0, part.height});
  }
  const Range needed = sources(vertical);
  return along_columns(along_rows(image, horizontal, needed), from(vertical, needed.first),
                       {0, part.width});
}

}  // namespace densenet_deploy
