// test_api BUNDLE PNG   what tests/cpp cannot see from outside: arguments, threads,
// lifetimes, the decoded path, fixed errors. Prints what failed and returns its number.
#include <cmath>
#include <cstdio>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "regcache.h"

namespace {

int failures = 0;

void expect(bool condition, const char *what, int line) {
    if (condition) return;
    std::printf("line %d: %s (last error: %s)\n", line, what, regcache_last_error());
    ++failures;
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

void arguments(const char *bundle) {
    regcache_model *model = nullptr;
    EXPECT(regcache_model_open(nullptr, nullptr, &model) == REGCACHE_INVALID_ARGUMENT);
    EXPECT(regcache_model_open(bundle, nullptr, nullptr) == REGCACHE_INVALID_ARGUMENT);
    EXPECT(std::strlen(regcache_last_error()) > 0);
    EXPECT(regcache_model_height(nullptr) == 0 && regcache_model_label(nullptr, 0) == nullptr);
    regcache_model_free(nullptr);
    regcache_context_free(nullptr);
    EXPECT(regcache_context_create(nullptr, nullptr) == REGCACHE_INVALID_ARGUMENT);

    auto params = regcache_model_default_params();
    params.struct_size += 8;  // a newer program
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_INVALID_ARGUMENT);
    params.struct_size = 0;  // not from regcache_model_default_params
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_INVALID_ARGUMENT);
    params = regcache_model_default_params();
    for (const int32_t threads : {-1, 4097, 2147483647}) {
        params.threads = threads;
        EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_INVALID_ARGUMENT);
    }
    params = regcache_model_default_params();
    params.pieces = 2;
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_INVALID_ARGUMENT);
    params.pieces = 0;
    params.saturation_warning = std::nan("");
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_INVALID_ARGUMENT);
    EXPECT(model == nullptr);
}

// The CPU build of ONNX Runtime has neither; with a GPU build this opens or says the same.
void providers(const char *bundle) {
    for (auto provider : {REGCACHE_PROVIDER_CUDA, REGCACHE_PROVIDER_TENSORRT}) {
        auto params = regcache_model_default_params();
        params.provider = provider;
        params.engine_cache = "/tmp";
        regcache_model *model = nullptr;
        const auto status = regcache_model_open(bundle, &params, &model);
        EXPECT(status == REGCACHE_OK || status == REGCACHE_PROVIDER_MISSING);
        EXPECT((status == REGCACHE_OK) == (model != nullptr));
        regcache_model_free(model);
    }
}

// Features of 70 images of noise, in one call.
std::vector<float> embedded(const char *bundle, int threads, int pieces) {
    auto params = regcache_model_default_params();
    params.threads = threads;
    params.pieces = pieces;
    regcache_model *model = nullptr;
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_OK);
    if (!model) return {};
    regcache_context *context = nullptr;
    EXPECT(regcache_context_create(model, &context) == REGCACHE_OK);
    std::vector<uint8_t> pixels(70 * regcache_model_pixels_size(model));
    uint32_t state = 1;
    for (auto &value : pixels) value = uint8_t((state = state * 1664525u + 1013904223u) >> 24);
    std::vector<float> features(70 * std::size_t(regcache_model_output_dim(model)));
    EXPECT(regcache_embed(context, pixels.data(), 70, features.data()) == REGCACHE_OK);
    regcache_context_free(context);
    regcache_model_free(model);
    return features;
}

void pieces(const char *bundle) {
    const auto wanted = embedded(bundle, 1, 0);
    EXPECT(wanted.size() > 70 && wanted[0] != wanted[wanted.size() / 70]);
    for (const int threads : {0, 1, 2, 3}) EXPECT(embedded(bundle, threads, 1) == wanted);
    EXPECT(embedded(bundle, 2, 0) == wanted);
}

void work(const char *bundle, const char *png) {
    auto params = regcache_model_default_params();
    params.struct_size = offsetof(regcache_model_params, saturation_warning);  // an older program
    params.threads = 1;
    regcache_model *model = nullptr;
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_OK);
    if (!model) return;
    EXPECT(std::string(regcache_model_name(model)) == "tiny");
    EXPECT(regcache_model_num_classes(model) == 4);
    EXPECT(std::string(regcache_model_label(model, 2)) == "\xc3\xa9t\xc3\xa9");
    EXPECT(regcache_model_label(model, 4) == nullptr && regcache_model_label(model, -1) == nullptr);

    const std::size_t one = regcache_model_pixels_size(model);
    const auto dim = std::size_t(regcache_model_output_dim(model));
    regcache_context *context = nullptr;
    EXPECT(regcache_context_create(model, &context) == REGCACHE_OK);
    std::vector<uint8_t> pixels(one);
    std::vector<float> wanted(dim);
    EXPECT(regcache_preprocess_file(context, png, pixels.data()) == REGCACHE_OK);
    EXPECT(regcache_preprocess_file(context, "/no/such", pixels.data()) ==
           REGCACHE_IMAGE_NOT_READABLE);
    EXPECT(regcache_preprocess_encoded(context, "GIF89a..", 8, pixels.data()) ==
           REGCACHE_IMAGE_FORMAT);
    EXPECT(regcache_preprocess_encoded(context, "", 0, pixels.data()) == REGCACHE_IMAGE_FORMAT);
    EXPECT(regcache_embed(context, pixels.data(), 1, wanted.data()) == REGCACHE_OK);
    EXPECT(regcache_embed(context, pixels.data(), 0, wanted.data()) == REGCACHE_INVALID_ARGUMENT);

    // a decoded picture with padded rows, of the model's own size: taken as it is
    const int height = regcache_model_height(model), width = regcache_model_width(model);
    const std::size_t stride = std::size_t(width) * 3 + 5;
    std::vector<uint8_t> padded(stride * std::size_t(height), 99), again(one);
    for (int y = 0; y < height; ++y)
        std::memcpy(&padded[std::size_t(y) * stride], &pixels[std::size_t(y * width) * 3],
                    std::size_t(width) * 3);
    EXPECT(regcache_preprocess_rgb(context, padded.data(), width, height, stride, again.data()) ==
           REGCACHE_OK);
    EXPECT(again == pixels);
    EXPECT(regcache_preprocess_rgb(context, padded.data(), width, height, 1, again.data()) ==
           REGCACHE_INVALID_ARGUMENT);
    EXPECT(regcache_preprocess_rgb(context, padded.data(), 2147483647, 2147483647,
                                   std::size_t(3) * 2147483647, again.data()) ==
           REGCACHE_IMAGE_TOO_LARGE);

    // a batch gives each image what it gets alone, up to the order of summation
    std::vector<uint8_t> three;
    for (int i = 0; i < 3; ++i) three.insert(three.end(), pixels.begin(), pixels.end());
    std::vector<float> batch(3 * dim);
    EXPECT(regcache_embed(context, three.data(), 3, batch.data()) == REGCACHE_OK);
    for (std::size_t i = 0; i < 3 * dim; ++i)
        EXPECT(std::fabs(batch[i] - wanted[i % dim]) <= 1e-4f * (1 + std::fabs(wanted[i % dim])));

    std::vector<regcache_prediction> best(4);
    EXPECT(regcache_classify(context, wanted.data(), 1, 4, best.data()) == REGCACHE_OK);
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += best[std::size_t(i)].score;
    EXPECT(std::fabs(sum - 1) < 1e-5f && best[0].score >= best[1].score);
    auto bad = wanted;
    bad[0] = std::nanf("");
    EXPECT(regcache_classify(context, bad.data(), 1, 4, best.data()) == REGCACHE_INVALID_ARGUMENT);
    for (const size_t count : {size_t(0), size_t(65537), ~size_t(0), size_t(1) << 55})
        EXPECT(regcache_classify(context, wanted.data(), count, 4, best.data()) ==
               REGCACHE_INVALID_ARGUMENT);
    EXPECT(regcache_classify(context, wanted.data(), 1, 5, best.data()) ==
           REGCACHE_INVALID_ARGUMENT);

    regcache_latency_report latency;
    EXPECT(regcache_latency(context, &latency) == REGCACHE_OK);
    EXPECT(latency.runs == 2 && latency.images == 4 && latency.p50_ms > 0);
    EXPECT(latency.p50_ms <= latency.p90_ms && latency.p90_ms <= latency.p99_ms);
    regcache_latency_reset(context);
    EXPECT(regcache_latency(context, &latency) == REGCACHE_OK && latency.runs == 0);

    // one model, many contexts; the model is freed first
    std::vector<std::thread> threads;
    std::vector<int> wrong(4, 0);
    std::vector<regcache_context *> contexts(4);
    for (auto &other : contexts) EXPECT(regcache_context_create(model, &other) == REGCACHE_OK);
    regcache_model_free(model);
    for (std::size_t t = 0; t < contexts.size(); ++t)
        threads.emplace_back([&, t] {
            std::vector<uint8_t> mine(one);
            std::vector<float> features(dim);
            for (int i = 0; i < 20; ++i) {
                wrong[t] += regcache_preprocess_file(contexts[t], png, mine.data()) != REGCACHE_OK;
                wrong[t] += regcache_embed(contexts[t], mine.data(), 1, features.data()) !=
                            REGCACHE_OK;
                wrong[t] += features != wanted;
                wrong[t] += regcache_preprocess_file(contexts[t], "", mine.data()) == REGCACHE_OK;
            }
        });
    for (auto &thread : threads) thread.join();
    for (int count : wrong) EXPECT(count == 0);
    for (auto *other : contexts) regcache_context_free(other);
    regcache_context_free(context);
}

// A forked child has none of the parent's threads: nothing may wait for them.
void forked(const char *bundle) {
    auto params = regcache_model_default_params();
    params.threads = 2;
    params.pieces = 1;
    regcache_model *model = nullptr, *own = nullptr;
    regcache_context *context = nullptr, *fresh = nullptr;
    EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_OK);
    EXPECT(regcache_context_create(model, &context) == REGCACHE_OK);
    if (!context) return;
    const std::vector<uint8_t> pixels(4 * regcache_model_pixels_size(model), 99);
    std::vector<float> wanted(4 * std::size_t(regcache_model_output_dim(model))), found(wanted);
    EXPECT(regcache_embed(context, pixels.data(), 4, wanted.data()) == REGCACHE_OK);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);  // ends a child that waits for ever
        int wrong = regcache_embed(context, pixels.data(), 4, found.data()) !=
                    REGCACHE_RUNTIME_FAILED;
        wrong |= std::strstr(regcache_last_error(), "forked") ? 0 : 2;
        regcache_context_free(context);
        regcache_model_free(model);
        wrong |= regcache_model_open(bundle, &params, &own) == REGCACHE_OK ? 0 : 4;
        wrong |= regcache_context_create(own, &fresh) == REGCACHE_OK ? 0 : 8;
        wrong |= regcache_embed(fresh, pixels.data(), 4, found.data()) == REGCACHE_OK ? 0 : 16;
        regcache_context_free(fresh);
        regcache_model_free(own);
        _exit(wrong | (found == wanted ? 0 : 32));
    }
    int status = 0;
    EXPECT(child > 0 && waitpid(child, &status, 0) == child);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(regcache_embed(context, pixels.data(), 4, found.data()) == REGCACHE_OK);
    EXPECT(found == wanted);
    regcache_context_free(context);
    regcache_model_free(model);
}

// The process has its ONNX Runtime by now: another one is refused, and the same one is not.
void library(const char *bundle) {
    auto params = regcache_model_default_params();
    regcache_model *model = nullptr;
    for (const char *other : {"/no/such/libonnxruntime.so", "libc.so.6"}) {
        params.onnxruntime_library = other;
        EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_INVALID_ARGUMENT);
        EXPECT(std::strstr(regcache_last_error(), other) && model == nullptr);
    }
    for (const char *same : {"libonnxruntime.so.1", ""}) {
        params.onnxruntime_library = same;
        EXPECT(regcache_model_open(bundle, &params, &model) == REGCACHE_OK);
        regcache_model_free(model);
        model = nullptr;
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    arguments(argv[1]);
    providers(argv[1]);
    work(argv[1], argv[2]);
    pieces(argv[1]);
    forked(argv[1]);
    library(argv[1]);
    return failures ? 1 : 0;
}
