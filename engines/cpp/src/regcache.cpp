// The C interface: checks arguments, and turns every exception into a status and a sentence.
#include "regcache.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "bundle.h"
#include "classify.h"
#include "decode.h"
#include "error.h"
#include "latency.h"
#include "monitor.h"
#include "preprocess.h"
#include "session.h"

using regcache::Error;

namespace {

constexpr std::size_t kMaxImageFile = std::size_t(1) << 30;
constexpr std::size_t kMaxBatch = 65536;

thread_local std::string last_error;

struct Model {
    regcache_model_params params;
    const char *onnxruntime_version;
    regcache::Bundle bundle;
    regcache::NormalizeTable normalized;
    regcache::Session session;

    Model(const char *path, const regcache_model_params &p, std::string library)
        : params(p),
          onnxruntime_version(regcache::load_onnxruntime(library)),
          bundle(regcache::Bundle::open(path)),
          normalized(regcache::normalize_table(bundle.preprocess)),
          session(bundle, params) {
        params.onnxruntime_library = params.engine_cache = nullptr;  // the caller's memory
    }
};

}  // namespace

struct regcache_model {
    std::shared_ptr<const Model> shared;
};

struct regcache_context {
    std::shared_ptr<const Model> model;
    regcache::Latency latency;
    regcache::Monitor monitor;
    std::vector<float> floats;
    std::vector<std::uint8_t> bytes;
    std::vector<std::vector<std::uint8_t>> codes;

    explicit regcache_context(std::shared_ptr<const Model> m)
        : model(std::move(m)),
          monitor(model->bundle.manifest.probes, model->params.saturation_warning) {}
};

namespace {

regcache_status fail(regcache_status status, const char *message) noexcept {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
    return status;
}

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

void require(bool condition, const char *message) {
    if (!condition) throw Error(REGCACHE_INVALID_ARGUMENT, message);
}

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
    require(params.threads >= 0, "threads is negative");
    require(params.max_pixels > 0, "max_pixels must be at least 1");
    require(params.provider >= REGCACHE_PROVIDER_CPU &&
                params.provider <= REGCACHE_PROVIDER_TENSORRT,
            "provider is none of regcache_provider");
    require(params.device_id >= 0, "device_id is negative");
    require(std::isfinite(params.saturation_warning) && params.saturation_warning >= 0,
            "saturation_warning must be 0 or positive");
    return params;
}

void warn(const regcache_model_params &params, const std::string &message) {
    if (params.warning)
        params.warning(message.c_str(), params.warning_user_data);
    else
        std::fprintf(stderr, "regcache: warning: %s\n", message.c_str());
}

// uint8 [count, H, W, 3] -> what the graph takes.
void *arrange(regcache_context &context, const std::uint8_t *pixels, std::size_t count) {
    const auto &model = *context.model;
    const auto plane = std::size_t(model.bundle.preprocess.height) *
                       std::size_t(model.bundle.preprocess.width);
    const std::size_t total = count * 3 * plane;
    if (model.session.interleaved()) {
        context.bytes.assign(pixels, pixels + total);
        return context.bytes.data();
    }
    const bool bytes = model.session.takes_bytes();
    if (bytes)
        context.bytes.resize(total);
    else
        context.floats.resize(total);
    for (std::size_t image = 0; image < count; ++image)
        for (std::size_t c = 0; c < 3; ++c) {
            const std::uint8_t *in = pixels + image * 3 * plane + c;
            const std::size_t begin = (image * 3 + c) * plane;
            const auto &table = model.normalized[c];
            if (bytes)
                for (std::size_t i = 0; i < plane; ++i) context.bytes[begin + i] = in[3 * i];
            else
                for (std::size_t i = 0; i < plane; ++i) context.floats[begin + i] = table[in[3 * i]];
        }
    return bytes ? static_cast<void *>(context.bytes.data()) : context.floats.data();
}

void embed(regcache_context &context, const std::uint8_t *pixels, std::size_t count,
           float *features) {
    const auto begin = std::chrono::steady_clock::now();
    void *input = arrange(context, pixels, count);
    context.model->session.run(input, count, features, context.codes);
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - begin;
    context.latency.add(spent.count(), count);
    for (const auto &message : context.monitor.add(context.codes, count))
        warn(context.model->params, message);
}

void decode_into(const regcache_context &context, const std::uint8_t *data, std::size_t size,
                 std::uint8_t *pixels) {
    const auto image = regcache::decode(data, size, context.model->params.max_pixels);
    regcache::preprocess(image.view(), context.model->bundle.preprocess, pixels);
}

}  // namespace

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

regcache_model_params regcache_model_default_params(void) {
    regcache_model_params params;
    std::memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.provider = REGCACHE_PROVIDER_CPU;
    params.max_pixels = regcache::kMaxPixels;
    params.saturation_warning = 4;
    return params;
}

regcache_status regcache_model_open(const char *bundle, const regcache_model_params *params,
                                    regcache_model **model) {
    return guarded([&] {
        require(bundle && model, "bundle or model is NULL");
        const auto checked_params = checked(params);
        const char *library = checked_params.onnxruntime_library;
        auto shared = std::make_shared<const Model>(bundle, checked_params, library ? library : "");
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

regcache_status regcache_context_create(const regcache_model *model, regcache_context **context) {
    return guarded([&] {
        require(model && context, "model or context is NULL");
        *context = new regcache_context(model->shared);
    });
}

void regcache_context_free(regcache_context *context) { delete context; }

regcache_status regcache_preprocess_file(regcache_context *context, const char *path,
                                         uint8_t *pixels) {
    return guarded([&] {
        require(context && path && pixels, "context, path or pixels is NULL");
        const auto data = regcache::read_image_file(path, kMaxImageFile);
        try {
            decode_into(*context, data.data(), data.size(), pixels);
        } catch (const Error &error) {
            throw Error(error.status, std::string(path) + ": " + error.what());
        }
    });
}

regcache_status regcache_preprocess_encoded(regcache_context *context, const void *data,
                                            size_t size, uint8_t *pixels) {
    return guarded([&] {
        require(context && data && pixels, "context, data or pixels is NULL");
        decode_into(*context, static_cast<const std::uint8_t *>(data), size, pixels);
    });
}

regcache_status regcache_preprocess_rgb(regcache_context *context, const uint8_t *rgb,
                                        int32_t width, int32_t height, size_t stride,
                                        uint8_t *pixels) {
    return guarded([&] {
        require(context && rgb && pixels, "context, rgb or pixels is NULL");
        require(width > 0 && height > 0, "width and height must be at least 1");
        require(stride >= std::size_t(width) * 3, "stride is less than 3 x width");
        regcache::check_pixels(width, height, context->model->params.max_pixels);
        const regcache::ImageView image{regcache::Mode::rgb, width, height, rgb, stride, nullptr};
        regcache::preprocess(image, context->model->bundle.preprocess, pixels);
    });
}

regcache_status regcache_embed(regcache_context *context, const uint8_t *pixels, size_t count,
                               float *features) {
    return guarded([&] {
        require(context && pixels && features, "context, pixels or features is NULL");
        require(count >= 1 && count <= kMaxBatch, "count must be between 1 and 65536");
        const auto &session = context->model->session;
        const std::size_t batch = session.batch() ? std::size_t(session.batch()) : count;
        require(count % batch == 0, "the bundle was exported for batches of a fixed size; give a "
                                    "multiple of regcache_model_batch() images");
        const std::size_t bytes = std::size_t(3) *
                                  std::size_t(context->model->bundle.preprocess.height) *
                                  std::size_t(context->model->bundle.preprocess.width);
        for (std::size_t done = 0; done < count; done += batch)
            embed(*context, pixels + done * bytes, batch, features + done * std::size_t(session.dim()));
    });
}

regcache_status regcache_classify(regcache_context *context, const float *features, size_t count,
                                  int32_t top, regcache_prediction *predictions) {
    return guarded([&] {
        require(context && features && predictions, "context, features or predictions is NULL");
        const auto &head = context->model->bundle.head;
        if (!head)
            throw Error(REGCACHE_BUNDLE_NO_HEAD,
                        "the bundle has no text features; export with class names to classify");
        require(top >= 1 && top <= head->classes, "top must be between 1 and the number of classes");
        for (std::size_t i = 0; i < count; ++i)
            regcache::classify(*head, features + i * std::size_t(head->dim), top,
                               predictions + i * std::size_t(top));
    });
}

regcache_status regcache_latency(const regcache_context *context, regcache_latency_report *report) {
    return guarded([&] {
        require(context && report, "context or report is NULL");
        *report = context->latency.report();
    });
}

void regcache_latency_reset(regcache_context *context) {
    if (context) context->latency = {};
}

regcache_status regcache_monitor(const regcache_context *context, regcache_probe_report *reports) {
    return guarded([&] {
        require(context && reports, "context or reports is NULL");
        context->monitor.report(reports);
    });
}
