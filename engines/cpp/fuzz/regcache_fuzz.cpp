// libFuzzer target: everything that reads bytes from outside, up to ONNX Runtime's own parser.
// The first byte chooses the reader, the second the preprocessing; the rest is the file, or the files
// of a folder.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "bundle.h"
#include "decode.h"
#include "error.h"
#include "folder.h"
#include "preprocess.h"

namespace {

using regcache::PreprocessConfig;

constexpr std::int64_t kPixels = 1 << 16;  // small, so that the fuzzer is quick

// A folder with nothing in it, where the names of a manifest are looked up.
const std::string &folder() {
    // never destroyed: it is still needed when the process ends
    static const auto *const path = [] {
        auto name = (std::filesystem::temp_directory_path() / "regcache_fuzz_XXXXXX").string();
        if (!mkdtemp(name.data())) std::abort();
        std::atexit([] {
            std::error_code code;
            std::filesystem::remove(folder(), code);
        });
        return new std::string(name);
    }();
    return *path;
}

void image(const std::uint8_t *data, std::size_t size, std::uint8_t choice) {
    PreprocessConfig config;
    config.width = 1 + (choice & 7) * 5;
    config.height = choice & 8 ? config.width : 16;
    config.filter = choice & 16 ? PreprocessConfig::Filter::bicubic
                                : PreprocessConfig::Filter::bilinear;
    config.resize = choice & 32   ? PreprocessConfig::Resize::squash
                    : choice & 64 ? PreprocessConfig::Resize::longest
                                  : PreprocessConfig::Resize::shortest;
    config.fill.fill(choice);
    config.resize_width = config.width + (choice & 3);
    config.resize_height = config.height + (choice & 3);
    config.rgb_first = choice & 128;
    std::vector<std::uint8_t> pixels(std::size_t(config.width) * std::size_t(config.height) * 3);
    const auto decoded = regcache::decode(data, size, kPixels);
    regcache::preprocess(decoded.view(), config, pixels.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size < 2) return 0;
    const std::string text(reinterpret_cast<const char *>(data + 2), size - 2);
    try {
        switch (data[0] % 5) {
            case 0: {
                const auto manifest = regcache::Manifest::parse(text);
                for (const auto &[name, file] : manifest.files)
                    if (name.find('/') != std::string::npos || name == "..") std::abort();
                regcache::check_files(folder(), manifest);
                break;
            }
            case 1: regcache::Head::parse(text, "head"); break;
            case 2: PreprocessConfig::parse(text); break;
            case 4: regcache::fuzz_folder(data + 2, size - 2); break;
            default: image(data + 2, size - 2, data[1]);
        }
    } catch (const regcache::Error &) {  // the only exception that may come out
    }
    return 0;
}
