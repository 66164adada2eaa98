#include "bundle.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "error.h"
#include "onnx_wire.h"
#include "sha256.h"

namespace regcache {
namespace {

namespace fs = std::filesystem;

constexpr char kManifest[] = "manifest.json";
constexpr char kModel[] = "model.onnx";
constexpr char kPreprocess[] = "preprocess_cfg.json";
constexpr char kHead[] = "text_features.safetensors";
constexpr char kText[] = "text";  // folder of the text tower
constexpr std::uint64_t kMaxDocument = 8u << 20;  // of JSON
constexpr std::uint64_t kMaxHead = 1u << 30;
constexpr std::uint64_t kMaxModel = 1u << 31;  // of one protobuf

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

std::string sha256_of(const std::string &bytes) {
    Sha256 hash;
    hash.update(bytes.data(), bytes.size());
    return hash.hex();
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

// Bytes that a used file may have; 0 for one that is only hashed.
std::uint64_t limit_of(const std::string &name) {
    if (name == kModel) return kMaxModel;
    if (name == kPreprocess) return kMaxDocument;
    return name == kHead ? kMaxHead : 0;
}

// The bytes of a file that is used, else nothing.
std::string check_file(const fs::path &path, const Manifest::File &listed, std::uint64_t limit) {
    std::error_code code;
    const auto status = fs::symlink_status(path, code);
    if (fs::is_symlink(status)) damaged(path.string() + " is a link; a bundle holds its files itself");
    if (!fs::is_regular_file(status)) damaged(path.string() + " is missing");
    const auto size = fs::file_size(path, code);
    if (code || size != listed.size)
        damaged(path.string() + " has " + std::to_string(size) + " bytes, and the manifest says " +
                std::to_string(listed.size) + "; the copy is incomplete");
    std::string bytes;
    if (limit) bytes = read(path, limit);
    if ((limit ? sha256_of(bytes) : sha256_of(path)) != listed.sha256)
        throw Error(REGCACHE_BUNDLE_CHECKSUM,
                    path.string() + " was changed after the export (SHA-256 differs); " + kAgain);
    return bytes;
}

// A head from a file of its own, for this bundle's features.
Head other_head(const std::string &path, const Manifest &manifest) {
    auto head = Head::parse(read(path, kMaxHead), path);
    if (!head.weights_sha256.empty() && !manifest.text_weights.empty() &&
        head.weights_sha256 != manifest.text_weights)
        throw Error(REGCACHE_BUNDLE_DAMAGED,
                    path + " was made by another model's text tower; make it again from this bundle");
    return head;
}

// Nothing but listed files is in the bundle's folder, or in a folder `inside/` of it; hidden files
// apart, which file managers leave.
void check_listed(const std::string &folder, const std::string &inside, const Manifest &manifest) {
    std::error_code code;
    for (fs::directory_iterator entry(fs::path(folder) / inside, code), end; !code && entry != end;
         entry.increment(code)) {
        const auto name = inside + entry->path().filename().string();
        const bool known = manifest.files.count(name) || name == kManifest ||
                           (name == kText && manifest.has_text);
        if (name[inside.size()] != '.' && !known)
            throw Error(REGCACHE_BUNDLE_DAMAGED,
                        folder + " holds " + name + ", which its manifest does not list; move it " +
                            "out of the bundle");
    }
    if (code) damaged(folder + " is not readable (" + code.message() + ")");
}

}  // namespace

std::map<std::string, std::string> check_files(const std::string &folder,
                                               const Manifest &manifest) {
    for (const char *name : {kModel, kPreprocess})
        if (!manifest.files.count(name))
            damaged(folder + "/" + kManifest + " does not list " + name);
    std::error_code code;
    if (manifest.has_text && fs::is_symlink(fs::symlink_status(fs::path(folder) / kText, code)))
        damaged(folder + "/" + kText + " is a link; a bundle holds its files itself");
    std::map<std::string, std::string> used;
    for (const auto &[name, file] : manifest.files) {
        auto bytes = check_file(fs::path(folder) / name, file, limit_of(name));
        if (limit_of(name)) used[name] = std::move(bytes);
    }
    check_listed(folder, "", manifest);
    if (manifest.has_text) check_listed(folder, std::string(kText) + "/", manifest);
    return used;
}

Bundle Bundle::open(const std::string &folder, const std::string &head) {
    const fs::path root(folder);
    std::error_code code;
    if (!fs::is_regular_file(root / kManifest, code))
        throw Error(REGCACHE_BUNDLE_NOT_FOUND,
                    folder + " is not a bundle: it has no manifest.json. A bundle is the folder " +
                        "NAME.regcache that `regcache export` writes");
    if (fs::is_symlink(fs::symlink_status(root / kManifest, code)))
        damaged((root / kManifest).string() + " is a link; a bundle holds its files itself");
    Bundle bundle;
    bundle.manifest = Manifest::parse(read(root / kManifest, kMaxDocument));
    auto used = check_files(folder, bundle.manifest);
    bundle.model_path = (root / kModel).string();
    bundle.preprocess = PreprocessConfig::parse(used[kPreprocess]);
    if (!head.empty())
        bundle.head = other_head(head, bundle.manifest);
    else if (bundle.manifest.files.count(kHead))
        bundle.head = Head::parse(used[kHead], kHead);
    bundle.model = std::move(used[kModel]);
    // ONNX Runtime 1.21, for one, opens a file that is named by its whole path
    if (has_external_data(bundle.model))
        throw Error(REGCACHE_RUNTIME_FAILED,
                    bundle.model_path + " keeps weights in other files, which no hash of the bundle " +
                        "covers, or hides whether it does; do not use this bundle");
    return bundle;
}

}  // namespace regcache
