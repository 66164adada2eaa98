#pragma once

#include "bundle.h"
#include "onnxruntime.h"
#include "regcache.h"

namespace regcache {

// Add what `params.provider` asks for, for the bundle of this manifest.
// Throws Error: this ONNX Runtime does not have it, or the bundle is for the CPU.
void add_provider(Ort::SessionOptions &options, const regcache_model_params &params,
                  const Manifest &manifest);

}  // namespace regcache
