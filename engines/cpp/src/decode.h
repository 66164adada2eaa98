#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "image.h"

namespace regcache {

// Pillow's own limit of harmless size (0.25 GiB of RGB).
constexpr std::int64_t kMaxPixels = 89'478'485;

// Decode a JPEG or PNG file. The content decides, not the name.
// Throws Error: format, damaged, too large.
Image decode(const std::uint8_t *data, std::size_t size, std::int64_t max_pixels);

// The parts of `decode`.
Image decode_jpeg(const std::uint8_t *data, std::size_t size, std::int64_t max_pixels);
Image decode_png(const std::uint8_t *data, std::size_t size, std::int64_t max_pixels);
void check_pixels(std::int64_t width, std::int64_t height, std::int64_t max_pixels);

// Read a whole file. Throws Error: not readable, empty, larger than `max_bytes`.
std::vector<std::uint8_t> read_image_file(const std::string &path, std::size_t max_bytes);

}  // namespace regcache
