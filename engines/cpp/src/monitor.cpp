#include "monitor.h"

#include <cmath>
#include <cstdio>
#include <utility>

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
        std::array<std::uint64_t, 2> ends{};
        for (const std::uint8_t code : codes[i]) {
            ends[0] += code == low;
            ends[1] += code == high;
        }
        for (Count *count : {&counts_[i].all, &counts_[i].recent}) {
            count->codes += codes[i].size();
            for (std::size_t end = 0; end < 2; ++end) count->ends[end] += ends[end];
        }
    }
    recent_images_ += images;
    std::vector<std::string> warnings;
    if (recent_images_ < kWindow) return warnings;
    recent_images_ = 0;
    for (std::size_t i = 0; i < probes_.size(); ++i) {
        const Count recent = std::exchange(counts_[i].recent, {});
        if (counts_[i].warned) continue;
        auto warning = judge(probes_[i], recent);
        if (warning.empty()) continue;
        counts_[i].warned = true;
        warnings.push_back(std::move(warning));
    }
    return warnings;
}

std::string Monitor::judge(const Probe &probe, const Count &recent) const {
    for (std::size_t end = 0; end < 2; ++end) {
        const double seen = rate(recent.ends[end], recent.codes);
        const double known = probe.calibrated[end];
        const double normal = std::isnan(known) ? kUnknown : known;
        if (factor_ <= 0 || seen <= kFloor || seen <= factor_ * normal) continue;
        char text[320], calibrated[64] = "";
        if (!std::isnan(known))
            std::snprintf(calibrated, sizeof calibrated, ", %.3g %% on the calibration images",
                          100 * known);
        std::snprintf(text, sizeof text,
                      "%s has %.3g %% of its codes at the %s end%s: these images leave the "
                      "calibrated range; calibrate with such images",
                      probe.name.substr(0, 100).c_str(), 100 * seen, end ? "upper" : "lower",
                      calibrated);
        return text;
    }
    return "";
}

void Monitor::report(regcache_probe_report *reports) const {
    for (std::size_t i = 0; i < probes_.size(); ++i) {
        const Count &all = counts_[i].all;
        reports[i] = {probes_[i].name.c_str(),     all.codes,
                      all.ends[0],                 all.ends[1],
                      rate(all.ends[0], all.codes), rate(all.ends[1], all.codes),
                      probes_[i].calibrated[0],    probes_[i].calibrated[1]};
    }
}

}  // namespace regcache
