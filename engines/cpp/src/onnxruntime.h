// ONNX Runtime, loaded when the first model is opened.
//
// It is not linked by default: its shared library exports one function under a symbol version of
// its exact release, and a program linked to 1.22 would not start beside 1.23. Every release
// answers that function for every older API.
#pragma once

#include <string>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

namespace regcache {

// Load `library`, or where it is empty: what the environment variable REGCACHE_ONNXRUNTIME names,
// what the process holds already, the system's libonnxruntime. Only the first call loads. Returns its version.
// Throws Error: not found, older than the headers this was compiled with, or another one is loaded.
const char *load_onnxruntime(const std::string &library);

// The process's only ORT environment; it is never destroyed, so that no model outlives it.
Ort::Env &environment();

}  // namespace regcache
