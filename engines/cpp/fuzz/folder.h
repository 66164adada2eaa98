#pragma once

#include <cstddef>
#include <cstdint>

namespace regcache {

// Writes the input as a folder and opens it as a bundle. The input is entries of
//
//   kind: 0 file, 1 link, 2 folder, 3 pipe   1 byte
//   name: an index of kNames                 1 byte
//   length of what follows                   3 bytes, little-endian; the rest where it is less
//   bytes: of a file; a link's target is the name that the first one chooses
//
// In the manifest "#N" stands for the SHA-256 of the file whose name has index N, and ~N for its
// size, so that what lies behind the checksums is reached, too.
//
// Throws Error; aborts where a bundle opened that must not.
void fuzz_folder(const std::uint8_t *data, std::size_t size);

}  // namespace regcache
