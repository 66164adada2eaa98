// What the opaque handles of the C interface hold, and how an exception becomes a status.
#pragma once

#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bundle.h"
#include "error.h"
#include "latency.h"
#include "monitor.h"
#include "preprocess.h"
#include "session.h"

namespace regcache {

struct Model {
    regcache_model_params params;
    const char *onnxruntime_version;
    Bundle bundle;
    NormalizeTable normalized;
    Session session;

    Model(const char *path, const regcache_model_params &p, std::string library)
        : params(p),
          onnxruntime_version(load_onnxruntime(library)),
          bundle(Bundle::open(path, p.head ? p.head : "")),
          normalized(normalize_table(bundle.preprocess)),
          session(bundle, params) {
        bundle.model = {};
        params.onnxruntime_library = params.engine_cache = params.head = nullptr;  // the caller's memory
    }
};

// Keeps the message for regcache_last_error().
regcache_status fail(regcache_status status, const char *message) noexcept;

template <typename Work>
regcache_status guarded(Work &&work) noexcept {
    try {
        work();
        return REGCACHE_OK;
    } catch (const Error &error) {
        return fail(error.status, error.what());
    } catch (const std::bad_alloc &) {
        return fail(REGCACHE_OUT_OF_MEMORY, "out of memory");
    } catch (const Ort::Exception &error) {
        return fail(REGCACHE_RUNTIME_FAILED, error.what());
    } catch (const std::exception &error) {
        return fail(REGCACHE_INTERNAL, error.what());
    } catch (...) {
        return fail(REGCACHE_INTERNAL, "unknown exception");
    }
}

inline void require(bool condition, const char *message) {
    if (!condition) throw Error(REGCACHE_INVALID_ARGUMENT, message);
}

}  // namespace regcache

struct regcache_model {
    std::shared_ptr<const regcache::Model> shared;
};

struct regcache_context {
    std::shared_ptr<const regcache::Model> model;
    regcache::Latency latency;
    regcache::Monitor monitor;
    std::vector<float> floats;
    std::vector<std::uint8_t> bytes;
    std::vector<std::vector<std::uint8_t>> codes;

    explicit regcache_context(std::shared_ptr<const regcache::Model> m)
        : model(std::move(m)),
          monitor(model->bundle.manifest.probes, model->params.saturation_warning) {}
};
