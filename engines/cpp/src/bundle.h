#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "preprocess_config.h"

namespace regcache {

// One quantized tensor whose integer codes the graph gives out, and what is normal for it.
struct Probe {
    std::string name;    // for people
    std::string output;  // of the graph
    int low = 0, high = 255;
    std::array<double, 2> calibrated{};  // share of codes at low and at high; NaN if unknown
};

// manifest.json, as far as a runtime needs it.
struct Manifest {
    struct File {
        std::string sha256;
        std::uint64_t size = 0;
    };

    std::string model;
    std::string caution;  // what must be said beside its results; "" where there is nothing
    std::map<std::string, File> files;
    bool has_text = false;     // a text tower in the folder `text`, which is only hashed
    std::string text_weights;  // SHA-256 of its float weights; "" without one
    bool takes_bytes = false;  // uint8 pixels instead of normalized float32
    bool for_cpu = false;      // no GPU has kernels for its integer products
    std::string input, output;
    std::vector<Probe> probes;

    // Throws Error: no JSON object, another schema, an unsafe file name, an incomplete entry.
    static Manifest parse(const std::string &json);
};

// The zero-shot head.
struct Head {
    std::int64_t classes = 0, dim = 0;
    std::vector<float> features;      // [classes, dim], L2-normalized rows
    std::vector<std::string> labels;  // one per class, or none
    double logit_scale = 1;
    std::string weights_sha256;       // of the text tower that made it; "" where it does not say

    // Read the bytes of a safetensors file; `name` is for messages.
    // Throws Error: another tensor, shape or type than a head has.
    static Head parse(const std::string &bytes, const std::string &name);
};

// A folder NAME.regcache that is whole, unchanged, and of a known schema.
struct Bundle {
    std::string model_path;  // for messages: what is there now need not be what was checked
    std::string model;       // its bytes, until the session is made
    Manifest manifest;
    PreprocessConfig preprocess;
    std::optional<Head> head;

    // `head`: a file in place of the bundle's own head; "" for that.
    // Throws Error: see the BUNDLE statuses.
    static Bundle open(const std::string &folder, const std::string &head = "");
};

// The part of `open` that looks at the files: each listed one is there, is no link, and has its
// size and checksum; nothing else is there, hidden files apart. Returns the bytes of those that are
// used, as they were hashed.
std::map<std::string, std::string> check_files(const std::string &folder, const Manifest &manifest);

}  // namespace regcache
