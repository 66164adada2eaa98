#pragma once

#include <cstdint>
#include <vector>

#include "image.h"
#include "preprocess_config.h"

namespace regcache {

// A part of an image, in pixels of that image.
struct Window {
    std::int64_t x0 = 0, y0 = 0;
    int width = 0, height = 0;
};

// Resize to `width` x `height` as Pillow's Image.resize does, bit for bit, and return only
// `window` of the result, which must lie inside of it. Palette and 1-bit images take the nearest
// pixel whatever the filter is, as in Pillow; images with alpha must be premultiplied before.
Image resample(const ImageView &source, std::int64_t width, std::int64_t height,
               PreprocessConfig::Filter filter, const Window &window);

}  // namespace regcache
