#pragma once

#include <string>

namespace regcache {

// Whether ONNX Runtime's u8s8 products may saturate at 16 bits on this CPU: only on x86 without
// VNNI. Asked of the CPU itself: /proc/cpuinfo is the host's inside of an emulator.
bool may_saturate();

// Cores' worth of time that the control groups of this process leave it (Linux, version 1 and 2),
// a part of a core counted as one; 0 where nothing limits it. ONNX Runtime counts the host's cores.
int core_limit(const std::string &root = "");

// Logical cores that the scheduler may give this process.
unsigned usable_cores();

// Cores that this process may use, within its limit; the hardware threads of one core count once.
int physical_cores();

}  // namespace regcache
