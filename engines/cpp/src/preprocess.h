#pragma once

#include <cstdint>
#include <vector>

#include "image.h"
#include "preprocess_config.h"

namespace regcache {

// Resize, crop or pad, and convert to RGB as open_clip with Pillow does it ->
// uint8 [config.height, config.width, 3] in `pixels`.
// Throws Error: the resized image would be too large.
void preprocess(const ImageView &image, const PreprocessConfig &config, std::uint8_t *pixels);

// Pixels as torchvision's ToTensor and Normalize turn them into float32, by channel and value.
using NormalizeTable = std::array<std::array<float, 256>, 3>;
NormalizeTable normalize_table(const PreprocessConfig &config);

}  // namespace regcache
