#include "folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "bundle.h"
#include "classify.h"
#include "preprocess.h"
#include "sha256.h"

namespace regcache {
namespace {

namespace fs = std::filesystem;

// seeds.py has the same list.
constexpr const char *kNames[] = {"manifest.json",
                                  "model.onnx",
                                  "preprocess_cfg.json",
                                  "text_features.safetensors",
                                  "text/model.onnx",
                                  "text/tokenizer.json",
                                  "text/text.json",
                                  "other",
                                  ".hidden",
                                  "text"};
constexpr std::size_t kCount = std::size(kNames);
constexpr std::int64_t kPixels = 1 << 16;  // small, so that the fuzzer is quick

struct Entry {
    int kind;
    std::string bytes;
};

using Entries = std::map<std::size_t, Entry>;

Entries entries_of(const std::uint8_t *data, std::size_t size) {
    Entries entries;
    while (size >= 5) {
        std::size_t length = data[2] | std::size_t(data[3]) << 8 | std::size_t(data[4]) << 16;
        length = std::min(length, size - 5);
        const auto *bytes = reinterpret_cast<const char *>(data + 5);
        entries[data[1] % kCount] = {data[0] % 4, std::string(bytes, length)};
        data += 5 + length;
        size -= 5 + length;
    }
    return entries;
}

// What "#N" and ~N stand for.
std::string filled_in(const std::string &manifest, const Entries &entries) {
    std::string result;
    for (std::size_t i = 0; i < manifest.size(); ++i) {
        const bool mark = manifest[i] == '#' || manifest[i] == '~';
        const char digit = mark && i + 1 < manifest.size() ? manifest[i + 1] : '\0';
        if (digit < '0' || digit > '9') {
            result += manifest[i];
            continue;
        }
        const auto found = entries.find(std::size_t(digit - '0'));
        const std::string bytes = found == entries.end() ? "" : found->second.bytes;
        if (manifest[i] == '#') {
            Sha256 hash;
            hash.update(bytes.data(), bytes.size());
            result += hash.hex();
        } else {
            result += std::to_string(bytes.size());
        }
        ++i;
    }
    return result;
}

// A folder that is gone with this object.
class Scratch {
public:
    Scratch() {
        const fs::path memory = "/dev/shm";  // a fuzzer writes a thousand folders a second
        const auto place = fs::is_directory(memory) ? memory : fs::temp_directory_path();
        auto name = (place / "regcache_fuzz_XXXXXX").string();
        if (!mkdtemp(name.data())) std::abort();
        path_ = name;
    }
    ~Scratch() {
        std::error_code code;
        fs::remove_all(path_, code);
    }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    const fs::path &path() const { return path_; }

private:
    fs::path path_;
};

void write(const fs::path &root, const Entries &entries) {
    std::error_code code;
    for (const auto &[index, entry] : entries) {
        const fs::path path = root / kNames[index];
        fs::create_directories(path.parent_path(), code);
        if (entry.kind == 1) {
            const std::size_t target = entry.bytes.empty() ? 0 : std::uint8_t(entry.bytes[0]);
            fs::create_symlink(root / kNames[target % kCount], path, code);
        } else if (entry.kind == 2) {
            fs::create_directory(path, code);
        } else if (entry.kind == 3) {
            mkfifo(path.c_str(), 0600);
        } else {
            std::ofstream(path, std::ios::binary)
                << (index == 0 ? filled_in(entry.bytes, entries) : entry.bytes);
        }
    }
}

void use(const Bundle &bundle) {
    const auto &config = bundle.preprocess;
    if (std::int64_t(config.width) * config.height <= kPixels) {
        const std::vector<std::uint8_t> image(7 * 5 * 3, 99);
        std::vector<std::uint8_t> pixels(std::size_t(config.width) * std::size_t(config.height) * 3);
        preprocess({Mode::rgb, 7, 5, image.data(), 7 * 3, nullptr}, config, pixels.data());
    }
    if (!bundle.head) return;
    const std::vector<float> features(std::size_t(bundle.head->dim), 0.5f);
    const auto top = std::int32_t(std::min<std::int64_t>(bundle.head->classes, 5));
    std::vector<regcache_prediction> predictions(std::size_t(top), {-1, 0});
    classify(*bundle.head, features.data(), top, predictions.data());
    for (const auto &prediction : predictions)
        if (prediction.index < 0 || prediction.index >= bundle.head->classes) std::abort();
}

}  // namespace

void fuzz_folder(const std::uint8_t *data, std::size_t size) {
    const auto entries = entries_of(data, size);
    const Scratch scratch;
    write(scratch.path(), entries);
    const auto bundle = Bundle::open(scratch.path().string());
    // it opened: then it holds nothing but files, and what is used is what was written
    for (const auto &[index, entry] : entries)
        if (kNames[index][0] != '.' && fs::is_symlink(fs::symlink_status(scratch.path() / kNames[index])))
            std::abort();
    const auto model = entries.find(1);
    if (model == entries.end() || model->second.bytes != bundle.model) std::abort();
    use(bundle);
}

}  // namespace regcache
