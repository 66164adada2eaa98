#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle.h"
#include "regcache.h"

namespace regcache {

// Counts the integer codes at either end of their range: values that the calibration did not
// foresee are clipped there. The ends are counted apart, because one of them may be full by nature:
// behind GELU, whose values end at -0.17, many codes are the lowest one.
class Monitor {
public:
    // `factor`: how many times the calibrated rate is too much; 0 never warns.
    Monitor(const std::vector<Probe> &probes, double factor);

    // Count one batch of `images`. Returns warnings, each probe's at most once.
    std::vector<std::string> add(const std::vector<std::vector<std::uint8_t>> &codes,
                                 std::size_t images);
    void report(regcache_probe_report *reports) const;

private:
    struct Count {
        std::uint64_t codes = 0;
        std::array<std::uint64_t, 2> ends{};  // at the lowest and at the highest code
    };
    struct Counts {
        Count all, recent;  // since the beginning, and in the current window
        bool warned = false;
    };

    // A warning where an end of the window's codes is too full, else "".
    std::string judge(const Probe &probe, const Count &recent) const;

    const std::vector<Probe> &probes_;
    const double factor_;
    std::size_t recent_images_ = 0;
    std::vector<Counts> counts_;
};

}  // namespace regcache
