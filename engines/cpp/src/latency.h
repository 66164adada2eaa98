#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "regcache.h"

namespace regcache {

// Durations of runs; percentiles of the last kWindow of them.
class Latency {
public:
    static constexpr std::size_t kWindow = 65536;

    void add(double milliseconds, std::size_t images);
    regcache_latency_report report() const;

private:
    std::vector<float> window_;
    std::size_t next_ = 0;
    std::uint64_t runs_ = 0, images_ = 0;
    double total_ = 0;
};

// The q-quantile (0 to 1) of sorted values, interpolated as numpy.percentile does; 0 if empty.
double quantile(const std::vector<float> &sorted, double q);

}  // namespace regcache
