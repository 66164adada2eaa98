#pragma once

#include <cstdint>

#include "bundle.h"
#include "regcache.h"

namespace regcache {

// The `top` best classes of one embedding [head.dim], best first; a tie goes to the lower index.
void classify(const Head &head, const float *features, std::int32_t top,
              regcache_prediction *predictions);

}  // namespace regcache
