#include "monitor.h"

#include <cmath>
#include <cstdio>

namespace regcache {
namespace {

constexpr std::size_t kWindow = 32;  // images; a single odd picture is no drift
constexpr double kFloor = 1e-3;      // rates below it change nothing
constexpr double kUnknown = 1e-2;    // what is normal where the bundle does not say

double rate(std::uint64_t part, std::uint64_t whole) {
    return whole ? double(part) / double(whole) : 0.0;
}

}  // namespace

Monitor::Monitor(const std::vector<Probe> &probes, double factor)
    : probes_(probes), factor_(factor), counts_(probes.size()) {}

std::vector<std::string> Monitor::add(const std::vector<std::vector<std::uint8_t>> &codes,
                                      std::size_t images) {
    for (std::size_t i = 0; i < probes_.size(); ++i) {
        // a signed code has the same byte as its unsigned twin
        const auto low = std::uint8_t(probes_[i].low), high = std::uint8_t(probes_[i].high);
        std::uint64_t saturated = 0;
        for (const std::uint8_t code : codes[i]) saturated += (code == low) | (code == high);
        counts_[i].codes += codes[i].size();
        counts_[i].saturated += saturated;
        counts_[i].recent_codes += codes[i].size();
        counts_[i].recent_saturated += saturated;
    }
    recent_images_ += images;
    std::vector<std::string> warnings;
    if (recent_images_ < kWindow) return warnings;
    recent_images_ = 0;
    for (std::size_t i = 0; i < probes_.size(); ++i) {
        Counts &counts = counts_[i];
        const double seen = rate(counts.recent_saturated, counts.recent_codes);
        counts.recent_saturated = counts.recent_codes = 0;
        const double known = probes_[i].calibrated_rate;
        const double normal = std::isnan(known) ? kUnknown : known;
        if (factor_ <= 0 || counts.warned || seen <= kFloor || seen <= factor_ * normal) continue;
        counts.warned = true;
        char text[320];
        std::snprintf(text, sizeof text,
                      "%s saturates %.3g %% of its codes, %.3g %% on the calibration images: these "
                      "images leave the calibrated range; calibrate with such images",
                      probes_[i].name.substr(0, 100).c_str(), 100 * seen, 100 * normal);
        warnings.emplace_back(text);
    }
    return warnings;
}

void Monitor::report(regcache_probe_report *reports) const {
    for (std::size_t i = 0; i < probes_.size(); ++i)
        reports[i] = {probes_[i].name.c_str(), counts_[i].codes, counts_[i].saturated,
                      rate(counts_[i].saturated, counts_[i].codes), probes_[i].calibrated_rate};
}

}  // namespace regcache
