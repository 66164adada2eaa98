#pragma once

#include <string>

namespace regcache {

// Whether any tensor of a serialized ONNX model names another file; also where that cannot be told.
// The same answer as regcache_engines/onnx_wire.py gives, models nested beyond what ONNX Runtime
// reads apart.
bool has_external_data(const std::string &model);

}  // namespace regcache
