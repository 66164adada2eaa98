#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.h"
#include "regcache.h"

namespace regcache {

// Counts the integer codes at either end of their range: values that the calibration did not
// foresee are clipped there.
class Monitor {
public:
    // `factor`: how many times the calibrated rate is too much; 0 never warns.
    Monitor(const std::vector<Probe> &probes, double factor);

    // Count one batch of `images`. Returns warnings, each probe's at most once.
    std::vector<std::string> add(const std::vector<std::vector<std::uint8_t>> &codes,
                                 std::size_t images);
    void report(regcache_probe_report *reports) const;

private:
    struct Counts {
        std::uint64_t codes = 0, saturated = 0;                // since the beginning
        std::uint64_t recent_codes = 0, recent_saturated = 0;  // of the current window
        bool warned = false;
    };

    const std::vector<Probe> &probes_;
    const double factor_;
    std::size_t recent_images_ = 0;
    std::vector<Counts> counts_;
};

}  // namespace regcache
