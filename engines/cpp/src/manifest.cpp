#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "bundle.h"
#include "error.h"
#include "json.h"

namespace regcache {
namespace {

using Json = nlohmann::json;

[[noreturn]] void damaged(const std::string &what) {
    throw Error(REGCACHE_BUNDLE_DAMAGED, "manifest.json " + what + "; " + kAgain);
}

// The entry of an object, or a null; never throws.
const Json &at(const Json &json, const char *key) {
    static const Json none;
    if (!json.is_object()) return none;
    const auto found = json.find(key);
    return found == json.end() ? none : *found;
}

std::string text(const Json &json, const char *fallback) {
    return json.is_string() ? json.get<std::string>() : fallback;
}

// A name from an untrusted file, short and printable.
std::string shown(const std::string &name) {
    std::string result;
    for (char c : name.substr(0, 60)) result += c >= ' ' && c != 0x7f ? c : '?';
    return "'" + result + "'";
}

bool unsafe(const std::string &name) {
    return name.empty() || name == "." || name == ".." || name == "manifest.json" ||
           name.find_first_of(std::string("/\\:\0", 4)) != std::string::npos;
}

// The text tower in a folder of its own: a bundle has all of these or none.
constexpr const char *kText[] = {"text/model.onnx", "text/tokenizer.json", "text/text.json"};

bool is_text(const std::string &name) {
    return std::find(std::begin(kText), std::end(kText), name) != std::end(kText);
}

void read_files(const Json &files, Manifest &manifest) {
    if (!files.is_object()) damaged("lists no files");
    for (const auto &[name, entry] : files.items()) {
        if (unsafe(name) && !is_text(name))
            throw Error(REGCACHE_BUNDLE_UNSAFE_NAME,
                        "manifest.json lists the file name " + shown(name) +
                            ", which could leave the bundle; do not use this bundle");
        if (name == "text") damaged("lists a file in place of the folder 'text'");
        const Json &hash = at(entry, "sha256"), &size = at(entry, "size");
        if (!hash.is_string()) damaged("has no SHA-256 for " + shown(name));
        if (!size.is_number_unsigned()) damaged("has no size for " + shown(name));
        manifest.files[name] = {hash.get<std::string>(), size.get<std::uint64_t>()};
    }
    for (const char *name : kText) {
        if (manifest.files.count(name))
            manifest.has_text = true;
        else if (std::any_of(std::begin(kText), std::end(kText),
                             [&](const char *other) { return manifest.files.count(other) > 0; }))
            damaged(std::string("does not list ") + name);
    }
}

int code(const Json &value, const char *key) {
    if (!is_whole(value, -128, 255)) damaged(std::string("has a probe without '") + key + "'");
    return value.get<int>();
}

// `rates`: what the export measured, by output.
void read_graph(const Json &graph, const Json &rates, Manifest &manifest) {
    const Json &input = at(graph, "input"), &output = at(graph, "output");
    const auto type = text(at(input, "dtype"), "");
    if (type != "float32" && type != "uint8")
        damaged("has an input of type " + shown(type) + ", and this version feeds float32 or uint8");
    manifest.takes_bytes = type == "uint8";
    manifest.input = text(at(input, "name"), "");
    manifest.output = text(at(output, "name"), "");
    if (manifest.input.empty() || manifest.output.empty()) damaged("does not name the graph's ends");
    const Json &probes = at(graph, "probes");
    if (!probes.is_array() && !probes.is_null()) damaged("has probes that are no list");
    if (probes.size() > 64) damaged("has too many probes");
    for (const Json &entry : probes) {
        Probe probe;
        probe.name = text(at(entry, "name"), "");
        probe.output = text(at(entry, "output"), "");
        if (probe.name.empty() || probe.output.empty()) damaged("has a probe without a name");
        probe.low = code(at(entry, "low"), "low");
        probe.high = code(at(entry, "high"), "high");
        probe.calibrated.fill(std::numeric_limits<double>::quiet_NaN());
        const Json &ends = at(rates, probe.output.c_str());
        for (std::size_t end = 0; ends.is_array() && ends.size() == 2 && end < 2; ++end)
            if (ends[end].is_number() && ends[end] >= 0 && ends[end] <= 1)
                probe.calibrated[end] = ends[end].get<double>();
        manifest.probes.push_back(probe);
    }
}

}  // namespace

Manifest Manifest::parse(const std::string &json) {
    const Json document = parse_document(json);
    if (!document.is_object()) damaged("holds no JSON object");
    const Json &schema = at(document, "schema");
    if (!is_whole(schema, REGCACHE_BUNDLE_SCHEMA, REGCACHE_BUNDLE_SCHEMA))
        throw Error(REGCACHE_BUNDLE_SCHEMA_UNKNOWN,
                    "the bundle has another schema than " + std::to_string(REGCACHE_BUNDLE_SCHEMA) +
                        ", which this version reads; install the version of regcache-deploy that "
                        "wrote it, or export again");
    Manifest manifest;
    manifest.model = text(at(document, "model"), "unknown");
    manifest.caution = text(at(at(document, "provenance"), "caution"), "");
    read_files(at(document, "files"), manifest);
    if (manifest.has_text) manifest.text_weights = text(at(at(document, "text"), "weights_sha256"), "");
    manifest.for_cpu = text(at(at(document, "graph"), "target"), "") == "onnxruntime" &&
                       at(document, "quantized_linears") != 0;
    read_graph(at(document, "graph"), at(at(document, "monitor"), "calibrated_rates"), manifest);
    return manifest;
}

}  // namespace regcache
