#pragma once

namespace regcache {

// Whether ONNX Runtime's u8s8 products may saturate at 16 bits on this CPU: only on x86 without
// VNNI. Asked of the CPU itself: /proc/cpuinfo is the host's inside of an emulator.
bool may_saturate();

}  // namespace regcache
