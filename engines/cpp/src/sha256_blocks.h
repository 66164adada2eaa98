#pragma once

#include <cstddef>
#include <cstdint>

namespace regcache {

// Cube roots of the first 64 primes (FIPS 180-4, section 4.2.2).
extern const std::uint32_t kSha256Round[64];

// Mix `count` blocks of 64 bytes into the state.
using Sha256Blocks = void (*)(std::uint32_t state[8], const std::uint8_t *bytes, std::size_t count);

// With the CPU's own instructions, five times as fast; null where it has none.
Sha256Blocks sha256_instructions();

}  // namespace regcache
