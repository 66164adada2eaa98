// JPEG through libjpeg-turbo, with the settings that Pillow leaves at their defaults: the accurate
// integer DCT and smooth chroma upsampling, so that the pixels are Pillow's.
#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>

#include <jpeglib.h>

#include "decode.h"
#include "error.h"

namespace regcache {
namespace {

// A scan costs a progressive file a few bytes, and passes over all pixels. Any file may have
// kScans, as regcache_engines/jpeg_scans.py says.
constexpr std::int64_t kScans = 16, kMaxScans = 500, kScanPixels = 500 << 20;

struct Failure {
    jpeg_error_mgr manager{};
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX] = "";
};

[[noreturn]] void fail(j_common_ptr info) {
    auto failure = reinterpret_cast<Failure *>(info->err);
    (*info->err->format_message)(info, failure->message);
    std::longjmp(failure->jump, 1);
}

[[noreturn]] void fail_with(j_common_ptr info, const char *message) {
    auto failure = reinterpret_cast<Failure *>(info->err);
    std::snprintf(failure->message, sizeof failure->message, "%s", message);
    std::longjmp(failure->jump, 1);
}

void be_quiet(j_common_ptr, int) {}

// libjpeg's own memory source invents an end-of-image marker and paints the rest grey.
boolean refuse_truncated(j_decompress_ptr info) {
    fail_with(reinterpret_cast<j_common_ptr>(info), "the file is truncated");
}

// Behind the last row a file may end.
boolean end_here(j_decompress_ptr) { return FALSE; }

void skip(j_decompress_ptr info, long count) {
    if (count <= 0) return;
    auto &source = *info->src;
    if (static_cast<unsigned long>(count) > source.bytes_in_buffer) {
        source.fill_input_buffer(info);
        source.bytes_in_buffer = 0;
        return;
    }
    source.next_input_byte += count;
    source.bytes_in_buffer -= static_cast<std::size_t>(count);
}

void no_operation(j_decompress_ptr) {}

void limit_scans(j_common_ptr info) {
    if (!info->is_decompressor) return;
    const auto image = reinterpret_cast<j_decompress_ptr>(info);
    const auto pixels = std::int64_t(image->image_width) * image->image_height;
    const auto most = std::max(kScans, std::min(kMaxScans, kScanPixels / pixels));
    if (image->input_scan_number > most) fail_with(info, "the file has too many scans");
}

struct Decoder {
    jpeg_decompress_struct info{};
    Failure failure;
    jpeg_source_mgr source{};
    jpeg_progress_mgr progress{};

    Decoder(const std::uint8_t *data, std::size_t size) {
        info.err = jpeg_std_error(&failure.manager);
        failure.manager.error_exit = fail;
        failure.manager.emit_message = be_quiet;
        source.next_input_byte = data;
        source.bytes_in_buffer = size;
        source.init_source = no_operation;
        source.fill_input_buffer = refuse_truncated;
        source.skip_input_data = skip;
        source.resync_to_restart = jpeg_resync_to_restart;
        source.term_source = no_operation;
        progress.progress_monitor = limit_scans;
    }
    ~Decoder() { jpeg_destroy_decompress(&info); }
    Decoder(const Decoder &) = delete;
    Decoder &operator=(const Decoder &) = delete;

    // Each step returns false after a longjmp; no object with a destructor lives inside them.
    bool start() {
        if (setjmp(failure.jump)) return false;
        jpeg_create_decompress(&info);
        info.src = &source;
        info.progress = &progress;
        jpeg_read_header(&info, TRUE);
        return true;
    }
    bool read(std::uint8_t *pixels, std::size_t stride) {
        if (setjmp(failure.jump)) return false;
        jpeg_start_decompress(&info);
        while (info.output_scanline < info.output_height) {
            JSAMPROW row = pixels + std::size_t(info.output_scanline) * stride;
            jpeg_read_scanlines(&info, &row, 1);
        }
        // up to the end marker, as in Pillow: data that break off are painted grey, and a marker that
        // cannot stand there is all that tells
        source.fill_input_buffer = end_here;
        jpeg_finish_decompress(&info);
        return true;
    }
    [[noreturn]] void refuse() const {
        throw Error(REGCACHE_IMAGE_DAMAGED, std::string("damaged JPEG: ") + failure.message);
    }
};

}  // namespace

Image decode_jpeg(const std::uint8_t *data, std::size_t size, std::int64_t max_pixels) {
    Decoder decoder(data, size);
    if (!decoder.start()) decoder.refuse();
    auto &info = decoder.info;
    check_pixels(info.image_width, info.image_height, max_pixels);
    Mode mode;
    switch (info.num_components) {
        case 1:
            mode = Mode::grey;
            info.out_color_space = JCS_GRAYSCALE;
            break;
        case 3:
            mode = Mode::rgb;
            info.out_color_space = JCS_RGB;
            break;
        case 4:
            mode = Mode::cmyk;
            info.out_color_space = JCS_CMYK;
            break;
        default:
            throw Error(REGCACHE_IMAGE_DAMAGED, "a JPEG file of " +
                                                    std::to_string(info.num_components) +
                                                    " channels is not an image");
    }
    Image image;
    image.allocate(mode, int(info.image_width), int(info.image_height));
    if (!decoder.read(image.data.data(), image.stride())) decoder.refuse();
    if (mode == Mode::cmyk)  // Adobe writes them inverted, and everybody follows
        for (auto &value : image.data) value = std::uint8_t(255 - value);
    return image;
}

}  // namespace regcache
