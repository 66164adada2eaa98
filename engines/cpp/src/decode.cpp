#include "decode.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include <fcntl.h>
#include <sys/stat.h>

#include "error.h"

namespace regcache {

void check_pixels(std::int64_t width, std::int64_t height, std::int64_t max_pixels) {
    if (width < 1 || height < 1) throw Error(REGCACHE_IMAGE_DAMAGED, "the image has no pixels");
    if (width > max_pixels / height)
        throw Error(REGCACHE_IMAGE_TOO_LARGE,
                    std::to_string(width) + " x " + std::to_string(height) +
                        " pixels are too many; shrink the image, or raise max_pixels");
}

Image decode(const std::uint8_t *data, std::size_t size, std::int64_t max_pixels) {
    static const std::uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    if (size >= 8 && std::memcmp(data, png, 8) == 0) return decode_png(data, size, max_pixels);
    if (size >= 3 && data[0] == 0xff && data[1] == 0xd8 && data[2] == 0xff)
        return decode_jpeg(data, size, max_pixels);
    throw Error(REGCACHE_IMAGE_FORMAT,
                "this is neither a JPEG nor a PNG file; convert it, or decode it yourself and give "
                "the pixels to regcache_preprocess_rgb");
}

std::vector<std::uint8_t> read_image_file(const std::string &path, std::size_t max_bytes) {
    // without O_NONBLOCK a named pipe would be waited for
    const int opened = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(
        opened < 0 ? nullptr : ::fdopen(opened, "rb"), &std::fclose);
    struct stat info {};
    if (!file || fstat(opened, &info) != 0)
        throw Error(REGCACHE_IMAGE_NOT_READABLE, path + ": " + std::strerror(errno));
    if (!S_ISREG(info.st_mode))
        throw Error(REGCACHE_IMAGE_NOT_READABLE, path + " is not a file");
    if (info.st_size == 0) throw Error(REGCACHE_IMAGE_NOT_READABLE, path + " is empty");
    if (std::uint64_t(info.st_size) > max_bytes)
        throw Error(REGCACHE_IMAGE_TOO_LARGE,
                    path + " has " + std::to_string(info.st_size) + " bytes, which are too many");
    std::vector<std::uint8_t> data(std::size_t(info.st_size));
    const std::size_t got = std::fread(data.data(), 1, data.size(), file.get());
    if (got != data.size())
        throw Error(REGCACHE_IMAGE_NOT_READABLE, path + " ended while it was read");
    return data;
}

}  // namespace regcache
