#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"
#include "resample.h"

namespace regcache {
namespace {

// A photograph of 1 x 1,000,000 pixels would be resized to 224 x 224,000,000.
constexpr double kMaxResized = double(1 << 30);

struct Geometry {
    std::int64_t width, height;  // of the resized image
    std::int64_t x0, y0;         // of the result in it; negative where it is padded
};

// Where a crop begins, or minus the padding; torchvision's center_crop. Halves round to even.
std::int64_t center(std::int64_t have, int want) {
    if (want > have) return -((want - have) / 2);
    return std::int64_t(std::nearbyint(double(have - want) / 2.0));
}

Geometry geometry(int width, int height, const PreprocessConfig &config) {
    using Resize = PreprocessConfig::Resize;
    double w = config.resize_width, h = config.resize_height;
    if (config.resize == Resize::shortest && w == h) {
        // torchvision truncates the longer side ...
        const double side = w;
        if (width <= height)
            h = std::floor(side * height / width);
        else
            w = std::floor(side * width / height);
    } else if (config.resize != Resize::squash) {
        // ... and timm rounds both
        const double by_height = double(height) / h;
        const double by_width = double(width) / w;
        const double ratio = config.resize == Resize::longest ? std::max(by_height, by_width)
                                                              : std::min(by_height, by_width);
        w = std::nearbyint(width / ratio);
        h = std::nearbyint(height / ratio);
    }
    if (!(w * h <= kMaxResized) || w < 1 || h < 1)
        throw Error(REGCACHE_IMAGE_TOO_LARGE,
                    std::to_string(width) + " x " + std::to_string(height) +
                        " pixels are too long and narrow to be resized; crop the image");
    Geometry result{std::int64_t(w), std::int64_t(h), 0, 0};
    result.x0 = center(result.width, config.width);
    result.y0 = center(result.height, config.height);
    return result;
}

std::uint8_t multiply(int a, int b) {  // a * b / 255, rounded; Pillow's MULDIV255
    const int t = a * b + 128;
    return std::uint8_t(((t >> 8) + t) >> 8);
}

Rgb to_rgb(Mode mode, const std::uint8_t *pixel, const std::array<Rgb, 256> *palette) {
    switch (mode) {
        case Mode::bilevel:
        case Mode::grey:
        case Mode::grey_alpha: return {pixel[0], pixel[0], pixel[0]};
        case Mode::grey16: {
            // Pillow clips 16-bit grey instead of scaling it
            std::uint16_t value;
            std::memcpy(&value, pixel, sizeof value);
            const auto grey = std::uint8_t(std::min<int>(value, 255));
            return {grey, grey, grey};
        }
        case Mode::palette: return (*palette)[pixel[0]];
        case Mode::rgb:
        case Mode::rgba: return {pixel[0], pixel[1], pixel[2]};
        case Mode::cmyk: break;
    }
    const int white = 255 - pixel[3];
    Rgb rgb{};
    for (std::size_t c = 0; c < 3; ++c)
        rgb[c] = std::uint8_t(std::clamp(white - multiply(pixel[c], white), 0, 255));
    return rgb;
}

// The padding's colour: the same numbers in the image's own mode.
Rgb fill_colour(const ImageView &image, const PreprocessConfig &config) {
    std::array<int, 4> fill{};
    if (config.resize == PreprocessConfig::Resize::longest)
        fill = {config.fill[0], config.fill[1], config.fill[2], config.fill[0]};
    std::uint8_t pixel[4];
    for (std::size_t c = 0; c < 4; ++c) pixel[c] = std::uint8_t(fill[c]);
    if (image.mode == Mode::bilevel && fill[0]) pixel[0] = 255;
    if (image.mode == Mode::grey16) {
        const auto value = std::uint16_t(fill[0]);
        std::memcpy(pixel, &value, sizeof value);
    }
    return to_rgb(image.mode, pixel, image.palette);
}

Image converted(const ImageView &image) {
    Image result;
    result.allocate(Mode::rgb, image.width, image.height);
    const int step = bytes_per_pixel(image.mode);
    for (int y = 0; y < image.height; ++y) {
        const std::uint8_t *in = image.row(y);
        std::uint8_t *out = result.row(y);
        for (int x = 0; x < image.width; ++x, in += step, out += 3) {
            const Rgb rgb = to_rgb(image.mode, in, image.palette);
            std::copy(rgb.begin(), rgb.end(), out);
        }
    }
    return result;
}

bool has_alpha(Mode mode) { return mode == Mode::grey_alpha || mode == Mode::rgba; }

Image premultiplied(const ImageView &image) {
    Image result;
    result.allocate(image.mode, image.width, image.height);
    const int channels = bytes_per_pixel(image.mode);
    for (int y = 0; y < image.height; ++y) {
        const std::uint8_t *in = image.row(y);
        std::uint8_t *out = result.row(y);
        for (int x = 0; x < image.width; ++x, in += channels, out += channels) {
            const int alpha = in[channels - 1];
            for (int c = 0; c < channels - 1; ++c) out[c] = multiply(in[c], alpha);
            out[channels - 1] = std::uint8_t(alpha);
        }
    }
    return result;
}

void divide_by_alpha(Image &image) {
    const std::size_t channels = std::size_t(bytes_per_pixel(image.mode));
    for (std::size_t i = 0; i < image.data.size(); i += channels) {
        const int alpha = image.data[i + channels - 1];
        if (alpha == 0 || alpha == 255) continue;
        for (std::size_t c = 0; c + 1 < channels; ++c)
            image.data[i + c] = std::uint8_t(std::min(255 * image.data[i + c] / alpha, 255));
    }
}

// `window` of the resized image.
Image resized(const ImageView &image, const Geometry &to, PreprocessConfig::Filter filter,
              const Window &window) {
    if (!has_alpha(image.mode)) return resample(image, to.width, to.height, filter, window);
    const Image multiplied = premultiplied(image);
    Image result = resample(multiplied.view(), to.width, to.height, filter, window);
    divide_by_alpha(result);
    return result;
}

}  // namespace

void preprocess(const ImageView &image, const PreprocessConfig &config, std::uint8_t *pixels) {
    if (config.rgb_first && image.mode != Mode::rgb) {
        const Image rgb = converted(image);
        return preprocess(rgb.view(), config, pixels);
    }
    const Geometry to = geometry(image.width, image.height, config);
    // the part of the result that is not padding
    const std::int64_t left = std::max<std::int64_t>(-to.x0, 0);
    const std::int64_t top = std::max<std::int64_t>(-to.y0, 0);
    Window window;
    window.x0 = std::max<std::int64_t>(to.x0, 0);
    window.y0 = std::max<std::int64_t>(to.y0, 0);
    window.width = int(std::min<std::int64_t>(config.width, to.width));
    window.height = int(std::min<std::int64_t>(config.height, to.height));

    Image storage;
    ImageView part = image;
    if (to.width == image.width && to.height == image.height) {
        part.data = image.row(window.y0) + std::size_t(window.x0) * bytes_per_pixel(image.mode);
    } else {
        const bool fixed = config.bicubic_if_oblong && config.width != config.height &&
                           config.resize == PreprocessConfig::Resize::shortest;
        const auto filter = fixed ? PreprocessConfig::Filter::bicubic : config.filter;
        storage = resized(image, to, filter, window);
        part = storage.view();
    }
    if (window.width < config.width || window.height < config.height) {
        const Rgb fill = fill_colour(image, config);
        for (std::size_t i = 0; i < std::size_t(config.width) * std::size_t(config.height); ++i)
            std::copy(fill.begin(), fill.end(), pixels + 3 * i);
    }
    part.width = window.width;
    part.height = window.height;
    part.palette = image.palette;
    Image rgb;
    if (image.mode != Mode::rgb) {
        rgb = converted(part);
        part = rgb.view();
    }
    for (int y = 0; y < window.height; ++y)
        std::memcpy(pixels + 3 * (std::size_t(top + y) * std::size_t(config.width) +
                                  std::size_t(left)),
                    part.row(y), std::size_t(window.width) * 3);
}

NormalizeTable normalize_table(const PreprocessConfig &config) {
    NormalizeTable table;
    for (std::size_t c = 0; c < 3; ++c)
        for (int v = 0; v < 256; ++v)
            table[c][std::size_t(v)] = (float(v) / 255.0f - config.mean[c]) / config.std[c];
    return table;
}

}  // namespace regcache
