#pragma once

#include "onnxruntime.h"
#include "regcache.h"

namespace regcache {

// Add what `params.provider` asks for. Throws Error: this ONNX Runtime does not have it.
void add_provider(Ort::SessionOptions &options, const regcache_model_params &params);

}  // namespace regcache
