#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace regcache {

// SHA-256 (FIPS 180-4), fed piece by piece.
class Sha256 {
public:
    void update(const void *data, std::size_t size);
    // Lower-case hexadecimal digest; the object is spent afterwards.
    std::string hex();

private:
    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> rest_{};
    std::size_t filled_ = 0;
    std::uint64_t total_ = 0;
};

}  // namespace regcache
