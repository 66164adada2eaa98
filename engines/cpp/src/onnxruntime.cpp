#include "onnxruntime.h"

#include <cstdlib>
#include <mutex>

#ifndef REGCACHE_LINK_ONNXRUNTIME
#include <dlfcn.h>
#endif

#include "error.h"

namespace regcache {
namespace {

using GetApiBase = const OrtApiBase *(*)();

#ifdef REGCACHE_LINK_ONNXRUNTIME

GetApiBase find(const std::string &library) {
    if (!library.empty())
        throw Error(REGCACHE_INVALID_ARGUMENT,
                    "onnxruntime_library is given, and this build is linked to one");
    return &OrtGetApiBase;
}

void require_same(const std::string &library, GetApiBase) { find(library); }

#else

GetApiBase symbol(void *handle) {
    return reinterpret_cast<GetApiBase>(dlsym(handle, "OrtGetApiBase"));
}

GetApiBase open(const char *path, std::string &reason) {
    // never closed: ONNX Runtime's threads and static objects do not survive it
    if (void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (auto found = symbol(handle)) return found;
        reason = std::string(path) + " is not ONNX Runtime";
        return nullptr;
    }
    const char *text = dlerror();
    reason = text ? text : path;
    return nullptr;
}

GetApiBase find(const std::string &library) {
    std::string reason;
    GetApiBase found = nullptr;
    const char *wanted = library.empty() ? std::getenv("REGCACHE_ONNXRUNTIME") : library.c_str();
    if (wanted && *wanted) {
        found = open(wanted, reason);
    } else {
        found = symbol(RTLD_DEFAULT);
        if (!found) found = open("libonnxruntime.so.1", reason);
        if (!found) found = open("libonnxruntime.so", reason);
    }
    if (!found)
        throw Error(REGCACHE_RUNTIME_MISSING,
                    "ONNX Runtime does not load (" + reason +
                        "); set REGCACHE_ONNXRUNTIME or onnxruntime_library to the path of "
                        "libonnxruntime.so");
    return found;
}

// By what is loaded, not by the path: the first call may have found it anywhere, and a file has
// several names.
void require_same(const std::string &library, GetApiBase loaded) {
    if (void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) {
        const bool same = symbol(handle) == loaded;
        dlclose(handle);
        if (same) return;
    }
    Dl_info info{};
    const bool known = dladdr(reinterpret_cast<void *>(loaded), &info) && info.dli_fname;
    throw Error(REGCACHE_INVALID_ARGUMENT,
                "onnxruntime_library is " + library + ", and this process runs " +
                    (known ? info.dli_fname : "another ONNX Runtime") +
                    ": it loads one, with the first model");
}

#endif

std::mutex mutex;
const char *version = nullptr;
GetApiBase loaded_base = nullptr;

}  // namespace

const char *load_onnxruntime(const std::string &library) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (version) {
        if (!library.empty()) require_same(library, loaded_base);
        return version;
    }
    // what is set already stays; see the header about threads
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    const GetApiBase get_base = find(library);
    const OrtApiBase *base = get_base();
    const OrtApi *api = base->GetApi(ORT_API_VERSION);
    if (!api)
        throw Error(REGCACHE_RUNTIME_MISSING,
                    std::string("ONNX Runtime ") + base->GetVersionString() +
                        " is too old; this library was compiled for 1." +
                        std::to_string(ORT_API_VERSION) + " or newer");
    Ort::InitApi(api);
    loaded_base = get_base;
    return version = base->GetVersionString();
}

Ort::Env &environment() {
    static auto *env = new Ort::Env(ORT_LOGGING_LEVEL_ERROR, "regcache");
    return *env;
}

}  // namespace regcache
