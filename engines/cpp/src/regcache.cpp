// The C interface: checks arguments, and turns every exception into a status and a sentence. This
// file has the library and the model, context.cpp the work of one thread.
#include "regcache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "decode.h"
#include "handles.h"

using regcache::guarded;
using regcache::require;

namespace {

constexpr std::int32_t kMaxThreads = 4096;

thread_local std::string last_error;

regcache_model_params checked(const regcache_model_params *given) {
    regcache_model_params params = regcache_model_default_params();
    if (given) {
        // a program compiled with an older header knows fewer fields; the rest keep their defaults
        const std::size_t size = given->struct_size;
        require(size >= sizeof(std::size_t) && size <= sizeof params,
                "params->struct_size is not that of this version; start from "
                "regcache_model_default_params()");
        std::memcpy(&params, given, size);
        params.struct_size = sizeof params;
    }
    // ONNX Runtime waits for ever for threads that the system does not give
    require(params.threads >= 0 && params.threads <= kMaxThreads,
            "threads must be between 0 and 4096");
    require(params.max_pixels > 0, "max_pixels must be at least 1");
    require(params.provider >= REGCACHE_PROVIDER_CPU &&
                params.provider <= REGCACHE_PROVIDER_TENSORRT,
            "provider is none of regcache_provider");
    require(params.device_id >= 0, "device_id is negative");
    require(params.pieces == 0 || params.pieces == 1, "pieces is neither 0 nor 1");
    require(std::isfinite(params.saturation_warning) && params.saturation_warning >= 0,
            "saturation_warning must be 0 or positive");
    return params;
}

}  // namespace

regcache_status regcache::fail(regcache_status status, const char *message) noexcept {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
    return status;
}

const char *regcache_version(void) { return REGCACHE_VERSION; }

const char *regcache_status_name(regcache_status status) {
    switch (status) {
#define NAME(status) \
    case status: return #status;
        NAME(REGCACHE_OK)
        NAME(REGCACHE_INVALID_ARGUMENT)
        NAME(REGCACHE_OUT_OF_MEMORY)
        NAME(REGCACHE_INTERNAL)
        NAME(REGCACHE_IMAGE_NOT_READABLE)
        NAME(REGCACHE_IMAGE_FORMAT)
        NAME(REGCACHE_IMAGE_DAMAGED)
        NAME(REGCACHE_IMAGE_TOO_LARGE)
        NAME(REGCACHE_BUNDLE_NOT_FOUND)
        NAME(REGCACHE_BUNDLE_SCHEMA_UNKNOWN)
        NAME(REGCACHE_BUNDLE_DAMAGED)
        NAME(REGCACHE_BUNDLE_CHECKSUM)
        NAME(REGCACHE_BUNDLE_UNSAFE_NAME)
        NAME(REGCACHE_BUNDLE_NO_HEAD)
        NAME(REGCACHE_RUNTIME_MISSING)
        NAME(REGCACHE_PROVIDER_MISSING)
        NAME(REGCACHE_RUNTIME_FAILED)
#undef NAME
    }
    return "unknown status";
}

int regcache_exit_code(regcache_status status) {
    if (status == REGCACHE_OK) return 0;
    if (status == REGCACHE_INVALID_ARGUMENT) return 2;
    if (status >= REGCACHE_IMAGE_NOT_READABLE && status <= REGCACHE_IMAGE_TOO_LARGE) return 4;
    if (status >= REGCACHE_BUNDLE_NOT_FOUND && status <= REGCACHE_BUNDLE_NO_HEAD) return 5;
    if (status >= REGCACHE_RUNTIME_MISSING && status <= REGCACHE_RUNTIME_FAILED) return 7;
    return 1;
}

const char *regcache_last_error(void) { return last_error.c_str(); }

void regcache_model_params_init(regcache_model_params *params, size_t struct_size) {
    if (!params) return;
    regcache_model_params defaults;
    std::memset(&defaults, 0, sizeof defaults);
    defaults.struct_size = struct_size;
    defaults.provider = REGCACHE_PROVIDER_CPU;
    defaults.max_pixels = regcache::kMaxPixels;
    defaults.saturation_warning = 4;
    std::memcpy(params, &defaults, std::min(struct_size, sizeof defaults));
}

regcache_status regcache_model_open(const char *bundle, const regcache_model_params *params,
                                    regcache_model **model) {
    return guarded([&] {
        require(bundle && model, "bundle or model is NULL");
        const auto checked_params = checked(params);
        const char *library = checked_params.onnxruntime_library;
        auto shared = std::make_shared<const regcache::Model>(bundle, checked_params, library ? library : "");
        *model = new regcache_model{std::move(shared)};
    });
}

void regcache_model_free(regcache_model *model) { delete model; }

int32_t regcache_model_height(const regcache_model *model) {
    return model ? model->shared->bundle.preprocess.height : 0;
}

int32_t regcache_model_width(const regcache_model *model) {
    return model ? model->shared->bundle.preprocess.width : 0;
}

size_t regcache_model_pixels_size(const regcache_model *model) {
    return std::size_t(3) * std::size_t(regcache_model_height(model)) *
           std::size_t(regcache_model_width(model));
}

int32_t regcache_model_output_dim(const regcache_model *model) {
    return model ? int32_t(model->shared->session.dim()) : 0;
}

int32_t regcache_model_batch(const regcache_model *model) {
    return model ? int32_t(model->shared->session.batch()) : 0;
}

int32_t regcache_model_num_classes(const regcache_model *model) {
    return model && model->shared->bundle.head ? int32_t(model->shared->bundle.head->classes) : 0;
}

const char *regcache_model_label(const regcache_model *model, int32_t index) {
    if (!model || !model->shared->bundle.head || index < 0) return nullptr;
    const auto &labels = model->shared->bundle.head->labels;
    return std::size_t(index) < labels.size() ? labels[std::size_t(index)].c_str() : nullptr;
}

const char *regcache_model_name(const regcache_model *model) {
    return model ? model->shared->bundle.manifest.model.c_str() : nullptr;
}

const char *regcache_model_caution(const regcache_model *model) {
    if (!model || model->shared->bundle.manifest.caution.empty()) return nullptr;
    return model->shared->bundle.manifest.caution.c_str();
}

const char *regcache_model_onnxruntime_version(const regcache_model *model) {
    return model ? model->shared->onnxruntime_version : nullptr;
}

int32_t regcache_model_num_probes(const regcache_model *model) {
    return model ? int32_t(model->shared->bundle.manifest.probes.size()) : 0;
}
