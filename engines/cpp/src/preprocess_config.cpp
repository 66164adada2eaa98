#include "preprocess_config.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "json.h"

namespace regcache {
namespace {

using Json = nlohmann::json;

constexpr int kMaxSide = 16384;
constexpr double kMaxColour = 1e6, kMinDeviation = 1e-6;  // as preprocess_config.py has them

[[noreturn]] void refuse(const std::string &what) {
    throw Error(REGCACHE_BUNDLE_DAMAGED, "preprocess_cfg.json " + what + "; " + kAgain);
}

int integer(const Json &value, const char *name, int low, int high) {
    if (!is_whole(value, low, high))
        refuse("has no whole number within its limits as '" + std::string(name) + "'");
    return value.get<int>();
}

std::array<float, 3> colour(const Json &value, const char *name, double lowest) {
    std::array<float, 3> result{};
    bool fits = value.is_array() && value.size() == 3;
    for (std::size_t i = 0; fits && i < 3; ++i) {
        fits = value[i].is_number();
        if (!fits) break;
        const double number = value[i].get<double>();
        fits = number >= lowest && number <= kMaxColour;
        result[i] = float(number);
    }
    if (!fits) refuse("needs three numbers as '" + std::string(name) + "'");
    return result;
}

void set_size(PreprocessConfig &config, const Json &value) {
    const bool pair = value.is_array() && value.size() == 2;
    const bool single = value.is_array() && value.size() == 1;
    config.height = integer(pair || single ? value[0] : value, "size", 1, kMaxSide);
    config.width = integer(pair ? value[1] : single ? value[0] : value, "size", 1, kMaxSide);
}

// timm resizes to size / crop_pct and cuts the result out of the middle.
void apply_timm(PreprocessConfig &config, const Json &json) {
    const Json part = json.contains("crop_pct") ? json["crop_pct"] : Json(0.875);
    if (!part.is_number()) refuse("has no number as 'crop_pct'");
    const double percent = part.get<double>();
    if (!(percent >= 0.01 && percent <= 1)) refuse("has a 'crop_pct' that is not in (0, 1]");
    const Json mode = json.contains("crop_mode") ? json["crop_mode"] : Json("center");
    if (mode != "center" && mode != "squash" && mode != "border")
        refuse("has an unknown 'crop_mode'");
    config.resize_height = int(std::floor(config.height / percent));
    config.resize_width = int(std::floor(config.width / percent));
    config.resize = mode == "squash"   ? PreprocessConfig::Resize::squash
                    : mode == "border" ? PreprocessConfig::Resize::longest
                                       : PreprocessConfig::Resize::shortest;
    for (std::size_t c = 0; c < 3; ++c) {
        const double mean = json.contains("mean") ? json["mean"][c].get<double>()
                                                  : double(config.mean[c]);
        config.fill[c] = int(std::clamp(std::nearbyint(255 * mean), 0.0, 255.0));
    }
    config.bicubic_if_oblong = false;
    config.rgb_first = true;
}

std::string word(const Json &value, const std::string &name) {
    if (!value.is_string()) refuse("has no text as '" + name + "'");
    return value.get<std::string>();
}

}  // namespace

PreprocessConfig PreprocessConfig::parse(const std::string &text) {
    const Json json = parse_document(text);
    if (!json.is_object()) refuse("holds no JSON object");
    PreprocessConfig config;
    for (const auto &[name, value] : json.items()) {
        if (name == "size") {
            set_size(config, value);
        } else if (name == "mean") {
            config.mean = colour(value, "mean", -kMaxColour);
        } else if (name == "std") {
            config.std = colour(value, "std", kMinDeviation);
        } else if (name == "fill_color") {
            config.fill.fill(integer(value, "fill_color", 0, 255));
        } else if (name == "mode") {
            if (word(value, name) != "RGB") refuse("has another mode than RGB");
        } else if (name == "interpolation") {
            const auto kind = word(value, name);
            // open_clip takes "random" as bicubic outside of training
            if (kind != "bicubic" && kind != "bilinear" && kind != "random")
                refuse("has the unknown interpolation '" + kind + "'");
            config.filter = kind == "bilinear" ? Filter::bilinear : Filter::bicubic;
        } else if (name == "resize_mode") {
            const auto kind = word(value, name);
            if (kind != "shortest" && kind != "longest" && kind != "squash")
                refuse("has the unknown resize_mode '" + kind + "'");
            config.resize = kind == "longest"  ? Resize::longest
                            : kind == "squash" ? Resize::squash
                                               : Resize::shortest;
        } else if (name != "crop_pct" && name != "crop_mode") {
            refuse("has the unknown field '" + name + "'");
        }
    }
    config.resize_height = config.height;
    config.resize_width = config.width;
    if (json.contains("crop_pct") || json.contains("crop_mode")) apply_timm(config, json);
    return config;
}

}  // namespace regcache
