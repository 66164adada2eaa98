#pragma once

#include <array>
#include <string>

namespace regcache {

// preprocess_cfg.json, the layout of open_clip's PreprocessCfg with its defaults. Where it carries
// timm's crop_pct or crop_mode, the fields describe timm's evaluation transform instead.
struct PreprocessConfig {
    enum class Filter { bilinear, bicubic };
    enum class Resize { shortest, longest, squash };

    int height = 224, width = 224;                // of the result
    int resize_height = 224, resize_width = 224;  // what the image is resized for; timm's is larger
    std::array<float, 3> mean{0.48145466f, 0.4578275f, 0.40821073f};
    std::array<float, 3> std{0.26862954f, 0.26130258f, 0.27577711f};
    Filter filter = Filter::bicubic;
    Resize resize = Resize::shortest;
    std::array<int, 3> fill{};      // of the padding, in the image's own mode
    bool bicubic_if_oblong = true;  // open_clip forgets the filter for a target that is not square
    bool rgb_first = false;         // timm's readers convert before they resize

    // Throws Error: no JSON object, an unknown field, or a value out of range.
    static PreprocessConfig parse(const std::string &json);
};

}  // namespace regcache
