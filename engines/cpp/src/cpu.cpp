#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace regcache {

#if defined(__x86_64__) || defined(__i386__)

namespace {

// What the operating system saves of the vector registers; 0 where it cannot be asked.
std::uint32_t saved_state() {
    std::uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return 0;  // OSXSAVE
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

}  // namespace

bool may_saturate() {
    constexpr std::uint32_t kAvx = 0x6, kAvx512 = 0xe6;  // bits of XCR0
    const std::uint32_t state = saved_state();
    std::uint32_t a, b, c, d;
    const bool avx512_vnni = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1u << 11);
    const bool avx_vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
    return !(avx512_vnni && (state & kAvx512) == kAvx512) && !(avx_vnni && (state & kAvx) == kAvx);
}

#else

bool may_saturate() { return false; }

#endif

}  // namespace regcache
