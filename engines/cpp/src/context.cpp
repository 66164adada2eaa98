// The C interface of a context: preprocess, embed, classify, and what is counted on the way.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "classify.h"
#include "decode.h"
#include "handles.h"

using regcache::Error;
using regcache::guarded;
using regcache::require;

namespace {

constexpr std::size_t kMaxImageFile = std::size_t(1) << 30;
constexpr std::size_t kMaxBatch = 65536;

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
        require(count >= 1 && count <= kMaxBatch, "count must be between 1 and 65536");
        const auto &head = context->model->bundle.head;
        if (!head)
            throw Error(REGCACHE_BUNDLE_NO_HEAD,
                        "the bundle has no text features; export with class names to classify");
        require(top >= 1 && top <= head->classes, "top must be between 1 and the number of classes");
        const float *end = features + count * std::size_t(head->dim);
        require(std::all_of(features, end, [](float value) { return std::isfinite(value); }),
                "features hold NaN or infinite values");
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
