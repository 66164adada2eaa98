#include "latency.h"

#include <algorithm>

namespace regcache {

void Latency::add(double milliseconds, std::size_t images) {
    if (window_.size() < kWindow) {
        window_.push_back(float(milliseconds));
    } else {
        window_[next_] = float(milliseconds);
        next_ = (next_ + 1) % kWindow;
    }
    ++runs_;
    images_ += images;
    total_ += milliseconds;
}

regcache_latency_report Latency::report() const {
    auto sorted = window_;
    std::sort(sorted.begin(), sorted.end());
    regcache_latency_report report{};
    report.runs = runs_;
    report.images = images_;
    report.mean_ms = runs_ ? total_ / double(runs_) : 0;
    report.p50_ms = quantile(sorted, 0.5);
    report.p90_ms = quantile(sorted, 0.9);
    report.p99_ms = quantile(sorted, 0.99);
    report.images_per_second = total_ > 0 ? 1000.0 * double(images_) / total_ : 0;
    return report;
}

double quantile(const std::vector<float> &sorted, double q) {
    if (sorted.empty()) return 0;
    const double at = q * double(sorted.size() - 1);
    const auto low = std::size_t(at);
    const auto high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (double(sorted[high]) - sorted[low]) * (at - double(low));
}

}  // namespace regcache
