// A decoded image in the mode that Pillow would give it.
//
// open_clip resizes before it converts to RGB, so the mode decides how the pixels are resampled:
// palette and 1-bit images by nearest neighbour, images with alpha premultiplied, CMYK in CMYK.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace regcache {

enum class Mode {
    bilevel,    // Pillow's "1": one byte, 0 or 255
    grey,       // "L"
    grey16,     // "I;16": two bytes, native order
    palette,    // "P": one byte, an index
    grey_alpha, // "LA"
    rgb,        // "RGB"
    rgba,       // "RGBA"
    cmyk,       // "CMYK": 0 is no ink
};

inline int bytes_per_pixel(Mode mode) {
    switch (mode) {
        case Mode::bilevel:
        case Mode::grey:
        case Mode::palette: return 1;
        case Mode::grey16:
        case Mode::grey_alpha: return 2;
        case Mode::rgb: return 3;
        case Mode::rgba:
        case Mode::cmyk: return 4;
    }
    return 0;
}

using Rgb = std::array<std::uint8_t, 3>;

// Pixels that somebody else owns.
struct ImageView {
    Mode mode = Mode::rgb;
    int width = 0, height = 0;
    const std::uint8_t *data = nullptr;
    std::size_t stride = 0;  // bytes from row to row
    const std::array<Rgb, 256> *palette = nullptr;

    const std::uint8_t *row(std::int64_t y) const { return data + std::size_t(y) * stride; }
};

struct Image {
    Mode mode = Mode::rgb;
    int width = 0, height = 0;
    std::vector<std::uint8_t> data;
    std::array<Rgb, 256> palette{};  // entries that the file does not name are black, as in Pillow

    void allocate(Mode m, int w, int h) {
        mode = m;
        width = w;
        height = h;
        data.resize(std::size_t(w) * std::size_t(h) * bytes_per_pixel(m));
    }
    std::size_t stride() const { return std::size_t(width) * bytes_per_pixel(mode); }
    std::uint8_t *row(int y) { return data.data() + std::size_t(y) * stride(); }
    ImageView view() const { return {mode, width, height, data.data(), stride(), &palette}; }
};

}  // namespace regcache
