#include "classify.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace regcache {

void classify(const Head &head, const float *features, std::int32_t top,
              regcache_prediction *predictions) {
    const auto dim = std::size_t(head.dim), classes = std::size_t(head.classes);
    double squares = 0;
    for (std::size_t i = 0; i < dim; ++i) squares += double(features[i]) * features[i];
    // torch's floor of a norm: a zero vector stays zero
    const double factor = head.logit_scale / std::max(std::sqrt(squares), 1e-12);
    std::vector<double> logits(classes);
    for (std::size_t k = 0; k < classes; ++k) {
        const float *row = &head.features[k * dim];
        double sum = 0;
        for (std::size_t i = 0; i < dim; ++i) sum += double(features[i]) * row[i];
        logits[k] = factor * sum;
    }
    std::vector<std::int32_t> order(classes);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top, order.end(),
                      [&](std::int32_t a, std::int32_t b) {
                          const double x = logits[std::size_t(a)], y = logits[std::size_t(b)];
                          return x != y ? x > y : a < b;
                      });
    const double best = logits[std::size_t(order[0])];
    double sum = 0;
    for (double logit : logits) sum += std::exp(logit - best);
    for (std::int32_t i = 0; i < top; ++i) {
        const std::int32_t index = order[std::size_t(i)];
        predictions[i] = {index, float(std::exp(logits[std::size_t(index)] - best) / sum)};
    }
}

}  // namespace regcache
