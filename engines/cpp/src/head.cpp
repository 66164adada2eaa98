// A head (text_features.safetensors in a bundle): 8 bytes of header length, the header as JSON,
// then one matrix and nothing else.
#include <cmath>
#include <cstring>

#include "bundle.h"
#include "error.h"
#include "json.h"

namespace regcache {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeader = 16u << 20;
constexpr double kMaxScale = 1e4, kNormTolerance = 0.01;  // as head.py has them
constexpr char kTensor[] = "text_features", kMetadata[] = "__metadata__";

// What is wrong, without the file's name.
struct Bad {
    std::string what;
};

[[noreturn]] void bad_head(const std::string &what) { throw Bad{what}; }

Json entry(const Json &json, const char *key) {
    return json.is_object() ? json.value(key, Json()) : Json();
}

std::uint64_t whole(const Json &value, std::uint64_t limit) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > limit)
        bad_head("has a number out of range in its header");
    return value.get<std::uint64_t>();
}

void read_tensor(const Json &tensor, const char *data, std::uint64_t size, Head &head) {
    const Json shape = entry(tensor, "shape"), offsets = entry(tensor, "data_offsets");
    const bool fits = entry(tensor, "dtype") == "F32" && shape.is_array() && shape.size() == 2 &&
                      offsets.is_array() && offsets.size() == 2;
    if (!fits) bad_head("has no float32 matrix 'text_features'");
    const std::uint64_t classes = whole(shape[0], 1u << 28), dim = whole(shape[1], 1u << 20);
    // no byte in front of the matrix, and none behind it
    if (whole(offsets[0], 0) != 0 || whole(offsets[1], size) != size || classes == 0 || dim == 0 ||
        size != classes * dim * sizeof(float))
        bad_head("is shorter or longer than its header says");
    head.classes = std::int64_t(classes);
    head.dim = std::int64_t(dim);
    head.features.resize(std::size_t(classes * dim));
    std::memcpy(head.features.data(), data, std::size_t(size));
    for (std::size_t row = 0; row < head.features.size(); row += std::size_t(dim)) {
        double squares = 0;
        for (std::size_t i = 0; i < std::size_t(dim); ++i) {
            const double value = head.features[row + i];
            if (!std::isfinite(value)) bad_head("holds NaN or infinite values");
            squares += value * value;
        }
        // one longer than the others would win by its length
        if (std::abs(std::sqrt(squares) - 1) > kNormTolerance)
            bad_head("has a class whose embedding is not of length 1");
    }
}

void read_metadata(const Json &metadata, Head &head) {
    for (const Json &value : metadata)
        if (!value.is_string()) bad_head("has metadata that are no texts");
    const Json labels = entry(metadata, "labels"), scale = entry(metadata, "logit_scale");
    if (!labels.is_string() || !scale.is_string()) bad_head("has no labels or no logit_scale");
    const Json list = parse_json(labels.get<std::string>());
    if (!list.is_array()) bad_head("has labels that are no list");
    for (const Json &label : list) {
        if (!label.is_string()) bad_head("has a label that is no text");
        head.labels.push_back(label.get<std::string>());
        if (head.labels.back().find('\0') != std::string::npos)  // where a label ends in C
            bad_head("has a label with a zero byte");
    }
    if (!head.labels.empty() && head.labels.size() != std::size_t(head.classes))
        bad_head("has " + std::to_string(head.labels.size()) + " labels for " +
                std::to_string(head.classes) + " classes");
    // not strtod: the program's locale may write a comma
    const Json number = parse_json(scale.get<std::string>());
    if (!number.is_number()) bad_head("has a logit_scale that is no number");
    head.logit_scale = number.get<double>();
    if (!(head.logit_scale > 0 && head.logit_scale <= kMaxScale))
        bad_head("has a logit_scale out of range");
    const Json weights = entry(metadata, "weights_sha256");
    if (weights.is_string()) head.weights_sha256 = weights.get<std::string>();
}

Head parsed(const std::string &bytes) {
    if (bytes.size() < 8) bad_head("is truncated");
    std::uint64_t length = 0;
    for (int i = 0; i < 8; ++i) length |= std::uint64_t(std::uint8_t(bytes[std::size_t(i)])) << 8 * i;
    if (length > kMaxHeader || length > bytes.size() - 8) bad_head("is truncated");
    const Json header = parse_json(bytes.substr(8, std::size_t(length)));
    if (!header.is_object() || bytes[8] != '{') bad_head("has no JSON header");
    if (header.size() != 2 || !header.contains(kTensor) || !header.contains(kMetadata))
        bad_head("holds other tensors than 'text_features', or no metadata");
    Head head;
    read_tensor(entry(header, kTensor), bytes.data() + 8 + length, bytes.size() - 8 - length, head);
    read_metadata(entry(header, kMetadata), head);
    return head;
}

}  // namespace

Head Head::parse(const std::string &bytes, const std::string &name) {
    try {
        return parsed(bytes);
    } catch (const Bad &bad) {
        throw Error(REGCACHE_BUNDLE_DAMAGED, name + " " + bad.what + "; " + kAgain);
    }
}

}  // namespace regcache
