#include "bundle.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "error.h"
#include "sha256.h"

namespace regcache {
namespace {

namespace fs = std::filesystem;

constexpr char kManifest[] = "manifest.json";
constexpr char kModel[] = "model.onnx";
constexpr char kPreprocess[] = "preprocess_cfg.json";
constexpr char kHead[] = "text_features.safetensors";
constexpr std::uint64_t kMaxDocument = 8u << 20;  // of JSON
constexpr std::uint64_t kMaxHead = 1u << 30;

[[noreturn]] void damaged(const std::string &what) {
    throw Error(REGCACHE_BUNDLE_DAMAGED, what + "; " + kAgain);
}

std::string read(const fs::path &path, std::uint64_t limit) {
    std::error_code code;
    const auto size = fs::file_size(path, code);
    if (code) damaged(path.string() + " is not readable (" + code.message() + ")");
    if (size > limit) damaged(path.string() + " is too large to be what it should be");
    std::ifstream file(path, std::ios::binary);
    std::string bytes(std::size_t(size), '\0');
    if (!file.read(bytes.data(), std::streamsize(size)))
        damaged(path.string() + " is not readable");
    return bytes;
}

std::string sha256_of(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) damaged(path.string() + " is not readable (" + std::strerror(errno) + ")");
    constexpr std::size_t size = 1 << 16;
    const auto buffer = std::make_unique<char[]>(size);
    Sha256 hash;
    do {
        file.read(buffer.get(), size);
        hash.update(buffer.get(), std::size_t(file.gcount()));
    } while (file);
    if (file.bad()) damaged(path.string() + " is not readable");
    return hash.hex();
}

void check_file(const fs::path &path, const Manifest::File &listed) {
    std::error_code code;
    const auto status = fs::symlink_status(path, code);
    if (fs::is_symlink(status)) damaged(path.string() + " is a link; a bundle holds its files itself");
    if (!fs::is_regular_file(status)) damaged(path.string() + " is missing");
    const auto size = fs::file_size(path, code);
    if (code || size != listed.size)
        damaged(path.string() + " has " + std::to_string(size) + " bytes, and the manifest says " +
                std::to_string(listed.size) + "; the copy is incomplete");
    if (sha256_of(path) != listed.sha256)
        throw Error(REGCACHE_BUNDLE_CHECKSUM,
                    path.string() + " was changed after the export (SHA-256 differs); " + kAgain);
}

}  // namespace

void check_files(const std::string &folder, const Manifest &manifest) {
    for (const char *name : {kModel, kPreprocess})
        if (!manifest.files.count(name))
            damaged(folder + "/" + kManifest + " does not list " + name);
    for (const auto &[name, file] : manifest.files) check_file(fs::path(folder) / name, file);
    std::error_code code;
    for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code)) {
        const auto name = entry->path().filename().string();
        if (name[0] != '.' && name != kManifest && !manifest.files.count(name))
            throw Error(REGCACHE_BUNDLE_DAMAGED,
                        folder + " holds " + name + ", which its manifest does not list; move it " +
                            "out of the bundle");
    }
    if (code) damaged(folder + " is not readable (" + code.message() + ")");
}

Bundle Bundle::open(const std::string &folder) {
    const fs::path root(folder);
    std::error_code code;
    if (!fs::is_regular_file(root / kManifest, code))
        throw Error(REGCACHE_BUNDLE_NOT_FOUND,
                    folder + " is not a bundle: it has no manifest.json. A bundle is the folder " +
                        "NAME.regcache that `regcache export` writes");
    Bundle bundle;
    bundle.manifest = Manifest::parse(read(root / kManifest, kMaxDocument));
    check_files(folder, bundle.manifest);
    bundle.model_path = (root / kModel).string();
    bundle.preprocess = PreprocessConfig::parse(read(root / kPreprocess, kMaxDocument));
    if (bundle.manifest.files.count(kHead)) bundle.head = Head::parse(read(root / kHead, kMaxHead));
    return bundle;
}

}  // namespace regcache
