// PNG through libpng, to the modes that Pillow's reader gives: 16-bit colour keeps its high byte,
// 16-bit grey stays 16-bit, palettes stay indices, transparency chunks and gamma are ignored.
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>

#include <png.h>

#include "decode.h"
#include "error.h"

namespace regcache {
namespace {

struct Decoder {
    png_structp png = nullptr;
    png_infop info = nullptr;
    const std::uint8_t *data;
    std::size_t left;
    char message[160] = "";
    // filled by `start`
    png_uint_32 width = 0, height = 0;
    int depth = 0, type = 0;

    Decoder(const std::uint8_t *bytes, std::size_t size) : data(bytes), left(size) {
        png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, be_quiet);
        if (png) info = png_create_info_struct(png);
        if (!info) {
            png_destroy_read_struct(&png, nullptr, nullptr);
            throw std::bad_alloc();
        }
    }
    ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }
    Decoder(const Decoder &) = delete;
    Decoder &operator=(const Decoder &) = delete;

    [[noreturn]] static void fail(png_structp png, png_const_charp text) {
        auto self = static_cast<Decoder *>(png_get_error_ptr(png));
        std::snprintf(self->message, sizeof self->message, "%s", text);
        png_longjmp(png, 1);
    }
    static void be_quiet(png_structp, png_const_charp) {}
    static void take(png_structp png, png_bytep out, std::size_t count) {
        auto self = static_cast<Decoder *>(png_get_io_ptr(png));
        if (count > self->left) png_error(png, "the file is truncated");
        std::memcpy(out, self->data, count);
        self->data += count;
        self->left -= count;
    }

    // Each step returns false after a longjmp; no object with a destructor lives inside them.
    bool start() {
        if (setjmp(png_jmpbuf(png))) return false;
        png_set_read_fn(png, this, take);
        png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the area is checked by us
        // profiles and texts may be decompression bombs; only IHDR, PLTE, IDAT matter here
        png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
        // Pillow refuses a wrong checksum of those, too
        png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
        png_read_info(png, info);
        png_get_IHDR(png, info, &width, &height, &depth, &type, nullptr, nullptr, nullptr);
        return true;
    }
    bool transform() {
        if (setjmp(png_jmpbuf(png))) return false;
        if (depth < 8) png_set_packing(png);
        if (depth == 16 && type != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        if (depth == 16 && type == PNG_COLOR_TYPE_GRAY) png_set_swap(png);
#endif
        if (type == PNG_COLOR_TYPE_GRAY_ALPHA && depth == 16) png_set_gray_to_rgb(png);
        passes = png_set_interlace_handling(png);
        png_read_update_info(png, info);
        return true;
    }
    bool read(std::uint8_t *pixels, std::size_t stride) {
        if (setjmp(png_jmpbuf(png))) return false;
        for (int pass = 0; pass < passes; ++pass)
            for (png_uint_32 y = 0; y < height; ++y)
                png_read_row(png, pixels + std::size_t(y) * stride, nullptr);
        return true;  // what follows the last row is not looked at
    }
    [[noreturn]] void refuse() const {
        throw Error(REGCACHE_IMAGE_DAMAGED, std::string("damaged PNG: ") + message);
    }

    int passes = 1;
};

Mode mode_of(const Decoder &decoder) {
    switch (decoder.type) {
        case PNG_COLOR_TYPE_GRAY:
            if (decoder.depth == 1) return Mode::bilevel;
            return decoder.depth == 16 ? Mode::grey16 : Mode::grey;
        case PNG_COLOR_TYPE_PALETTE: return Mode::palette;
        case PNG_COLOR_TYPE_GRAY_ALPHA:
            return decoder.depth == 16 ? Mode::rgba : Mode::grey_alpha;
        case PNG_COLOR_TYPE_RGB: return Mode::rgb;
        default: return Mode::rgba;
    }
}

}  // namespace

Image decode_png(const std::uint8_t *data, std::size_t size, std::int64_t max_pixels) {
    Decoder decoder(data, size);
    if (!decoder.start()) decoder.refuse();
    check_pixels(decoder.width, decoder.height, max_pixels);
    if (!decoder.transform()) decoder.refuse();
    Image image;
    image.allocate(mode_of(decoder), int(decoder.width), int(decoder.height));
    if (png_get_rowbytes(decoder.png, decoder.info) != image.stride())
        throw Error(REGCACHE_INTERNAL, "libpng gives rows of another size than expected");
    if (!decoder.read(image.data.data(), image.stride())) decoder.refuse();

    if (image.mode == Mode::palette) {
        png_colorp colours = nullptr;
        int count = 0;
        png_get_PLTE(decoder.png, decoder.info, &colours, &count);
        for (int i = 0; i < count && i < 256; ++i)
            image.palette[std::size_t(i)] = {colours[i].red, colours[i].green, colours[i].blue};
    } else if (decoder.type == PNG_COLOR_TYPE_GRAY && decoder.depth < 8) {
        const int factor = 255 / ((1 << decoder.depth) - 1);
        for (auto &value : image.data) value = std::uint8_t(value * factor);
    }
    return image;
}

}  // namespace regcache
