// Pillow's arithmetic (libImaging/Resample.c and Geometry.c, MIT-CMU licence), so that the pixels
// are its own: a separable filter that widens when the image shrinks (antialiasing), coefficients
// rounded to 22 bits behind the point, an 8-bit image in between. Which of the two passes comes
// first shows in the last bit, and behind a division by alpha in more than that.
// Only the rows and columns that the window needs are computed; the others do not influence it.
#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace regcache {
namespace {

constexpr int kPrecision = 32 - 8 - 2;
constexpr double kMaxWeights = 1 << 24;  // a picture one pixel high and millions wide

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

double bilinear(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

// For each output position: where its inputs begin, and their weights.
struct Weights {
    struct Span {
        std::int64_t first;
        int count;
    };
    int size = 0;  // weights per position
    std::vector<Span> spans;
    std::vector<double> exact;         // for 16-bit pixels
    std::vector<std::int32_t> fixed;   // for 8-bit pixels

    std::int64_t first_input() const { return spans.front().first; }
    std::int64_t end_input() const { return spans.back().first + spans.back().count; }
};

Weights weights_of(Mode mode, std::int64_t in, std::int64_t out, PreprocessConfig::Filter filter,
                   std::int64_t begin, int count) {
    const bool cubic = filter == PreprocessConfig::Filter::bicubic;
    const double scale = double(in) / double(out);
    const double filter_scale = std::max(scale, 1.0);
    const double support = (cubic ? 2.0 : 1.0) * filter_scale;
    const double step = 1.0 / filter_scale;
    if (support * count > kMaxWeights)
        throw Error(REGCACHE_IMAGE_TOO_LARGE, "the image is too long and narrow; crop it");
    Weights weights;
    weights.size = int(std::ceil(support)) * 2 + 1;
    const std::size_t size = std::size_t(weights.size), total = std::size_t(count) * size;
    if (mode == Mode::grey16)
        weights.exact.resize(total);
    else
        weights.fixed.resize(total);
    std::vector<double> row(size);
    for (int i = 0; i < count; ++i) {
        const double center = (double(begin + i) + 0.5) * scale;
        const auto first = std::max<std::int64_t>(std::int64_t(center - support + 0.5), 0);
        const auto end = std::min<std::int64_t>(std::int64_t(center + support + 0.5), in);
        const int taps = int(end - first);
        double sum = 0.0;
        for (int x = 0; x < taps; ++x) {
            const double at = (double(x + first) - center + 0.5) * step;
            row[std::size_t(x)] = cubic ? bicubic(at) : bilinear(at);
            sum += row[std::size_t(x)];
        }
        weights.spans.push_back({first, taps});
        const std::size_t begins = std::size_t(i) * size;
        for (std::size_t x = 0; x < std::size_t(taps); ++x) {
            const double w = sum != 0.0 ? row[x] / sum : row[x];
            if (mode == Mode::grey16)
                weights.exact[begins + x] = w;
            else
                weights.fixed[begins + x] =
                    std::int32_t((w < 0 ? -0.5 : 0.5) + w * (1 << kPrecision));
        }
    }
    return weights;
}

std::uint8_t clip8(std::int32_t value) {
    return std::uint8_t(std::clamp(value >> kPrecision, 0, 255));
}

// One row of an 8-bit image of C channels.
template <int C>
void columns8(const std::uint8_t *in, std::int64_t left, const Weights &weights, std::uint8_t *out) {
    for (std::size_t x = 0; x < weights.spans.size(); ++x) {
        const auto [first, count] = weights.spans[x];
        const std::int32_t *w = &weights.fixed[x * std::size_t(weights.size)];
        const std::uint8_t *pixel = in + std::size_t(first - left) * C;
        std::int32_t sum[C];
        for (int c = 0; c < C; ++c) sum[c] = 1 << (kPrecision - 1);
        for (int i = 0; i < count; ++i, pixel += C)
            for (int c = 0; c < C; ++c) sum[c] += pixel[c] * w[i];
        for (int c = 0; c < C; ++c) *out++ = clip8(sum[c]);
    }
}

void columns8(int channels, const std::uint8_t *in, std::int64_t left, const Weights &weights,
              std::uint8_t *out) {
    switch (channels) {
        case 1: return columns8<1>(in, left, weights, out);
        case 2: return columns8<2>(in, left, weights, out);
        case 3: return columns8<3>(in, left, weights, out);
        default: return columns8<4>(in, left, weights, out);
    }
}

// 16-bit pixels are summed in doubles, and their two bytes clipped apart, as Pillow does it.
std::uint16_t clip16(double sum) {
    const double whole = sum >= 0.0 ? std::floor(sum + 0.5) : -std::floor(std::fabs(sum) + 0.5);
    const auto value = std::int32_t(whole);
    const int low = std::clamp(value % 256, 0, 255), high = std::clamp(value >> 8, 0, 255);
    return std::uint16_t(low | high << 8);
}

std::uint16_t load16(const std::uint8_t *at) {
    std::uint16_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

void columns16(const std::uint8_t *in, std::int64_t left, const Weights &weights,
               std::uint8_t *out) {
    for (std::size_t x = 0; x < weights.spans.size(); ++x) {
        const auto [first, count] = weights.spans[x];
        const double *w = &weights.exact[x * std::size_t(weights.size)];
        double sum = 0.0;
        for (int i = 0; i < count; ++i) sum += load16(in + std::size_t(first - left + i) * 2) * w[i];
        const std::uint16_t value = clip16(sum);
        std::memcpy(out + x * 2, &value, sizeof value);
    }
}

// Rows [top, top + height) of `source`, which begins at column `left` of the image that `weights`
// speak of.
Image resample_columns(const ImageView &source, std::int64_t left, const Weights &weights,
                       std::int64_t top, int height) {
    Image result;
    result.allocate(source.mode, int(weights.spans.size()), height);
    const int channels = bytes_per_pixel(source.mode);
    for (int y = 0; y < height; ++y) {
        const std::uint8_t *in = source.row(top + y);
        if (source.mode == Mode::grey16)
            columns16(in, left, weights, result.row(y));
        else
            columns8(channels, in, left, weights, result.row(y));
    }
    return result;
}

// Columns [left, left + width) of `source`, which begins at row `top` of the image that `weights`
// speak of.
Image resample_rows(const ImageView &source, std::int64_t top, const Weights &weights,
                    std::int64_t left, int width) {
    Image result;
    result.allocate(source.mode, width, int(weights.spans.size()));
    const std::size_t bytes = result.stride();
    const std::size_t skipped = std::size_t(left) * std::size_t(bytes_per_pixel(source.mode));
    std::vector<std::int32_t> sums(bytes);
    for (int y = 0; y < result.height; ++y) {
        const auto [first, count] = weights.spans[std::size_t(y)];
        std::uint8_t *out = result.row(y);
        if (source.mode == Mode::grey16) {
            const double *w = &weights.exact[std::size_t(y) * std::size_t(weights.size)];
            for (std::size_t x = 0; x < bytes; x += 2) {
                double sum = 0.0;
                for (int i = 0; i < count; ++i)
                    sum += load16(source.row(first - top + i) + skipped + x) * w[i];
                const std::uint16_t value = clip16(sum);
                std::memcpy(out + x, &value, sizeof value);
            }
            continue;
        }
        const std::int32_t *w = &weights.fixed[std::size_t(y) * std::size_t(weights.size)];
        std::fill(sums.begin(), sums.end(), 1 << (kPrecision - 1));
        for (int i = 0; i < count; ++i) {
            const std::uint8_t *in = source.row(first - top + i) + skipped;
            for (std::size_t x = 0; x < bytes; ++x) sums[x] += in[x] * w[i];
        }
        for (std::size_t x = 0; x < bytes; ++x) out[x] = clip8(sums[x]);
    }
    return result;
}

// Input positions of the outputs [begin, begin + count); -1 is outside. The position is summed up,
// not multiplied, because Pillow's rounding errors are part of its result.
std::vector<std::int64_t> nearest_positions(std::int64_t in, std::int64_t out, std::int64_t begin,
                                            int count) {
    const double step = double(in) / double(out);
    std::vector<std::int64_t> positions;
    double at = step * 0.5;
    for (std::int64_t i = 0; i < begin + count; ++i, at += step)
        if (i >= begin) positions.push_back(at < double(in) ? std::int64_t(at) : -1);
    return positions;
}

Image nearest(const ImageView &source, std::int64_t width, std::int64_t height,
              const Window &window) {
    Image result;
    result.allocate(source.mode, window.width, window.height);
    const auto xs = nearest_positions(source.width, width, window.x0, window.width);
    const auto ys = nearest_positions(source.height, height, window.y0, window.height);
    for (int y = 0; y < window.height; ++y) {
        std::uint8_t *out = result.row(y);
        for (int x = 0; x < window.width; ++x) {
            const bool inside = xs[std::size_t(x)] >= 0 && ys[std::size_t(y)] >= 0;
            out[x] = inside ? source.row(ys[std::size_t(y)])[xs[std::size_t(x)]] : 0;
        }
    }
    return result;
}

// Pillow 13 begins with the rows where they shrink by far more than the columns. Its rule was found
// by comparing both orders on random sizes; Pillow before 13 always begins with the columns.
bool rows_first(const ImageView &source, std::int64_t width, std::int64_t height) {
    const std::int64_t fewer = source.height - height;
    return fewer > 0 && fewer > 2 * (source.width - width);
}

}  // namespace

Image resample(const ImageView &source, std::int64_t width, std::int64_t height,
               PreprocessConfig::Filter filter, const Window &window) {
    if (source.mode == Mode::palette || source.mode == Mode::bilevel)
        return nearest(source, width, height, window);
    const auto columns = [&] {
        return weights_of(source.mode, source.width, width, filter, window.x0, window.width);
    };
    const auto rows = [&] {
        return weights_of(source.mode, source.height, height, filter, window.y0, window.height);
    };
    if (source.height == height)
        return resample_columns(source, 0, columns(), window.y0, window.height);
    if (source.width == width)
        return resample_rows(source, 0, rows(), window.x0, window.width);
    const Weights across = columns(), down = rows();
    if (rows_first(source, width, height)) {
        const std::int64_t left = across.first_input();
        const Image thin = resample_rows(source, 0, down, left, int(across.end_input() - left));
        return resample_columns(thin.view(), left, across, 0, window.height);
    }
    const std::int64_t top = down.first_input();
    const Image flat =
        resample_columns(source, 0, across, top, int(down.end_input() - top));
    return resample_rows(flat.view(), top, down, 0, window.width);
}

}  // namespace regcache
