// regcache_classify [options] BUNDLE IMAGE...   the five most likely classes of each image
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "regcache.h"

namespace {

constexpr char kUsage[] =
    "usage: regcache_classify [options] BUNDLE IMAGE...\n"
    "  --json          print one JSON object, as `regcache eval --images --json` does\n"
    "  --bench N       run N times after a warm-up; print latency, images/s and memory\n"
    "  --batch N       images per run of --bench (default 1)\n"
    "  --top N         classes per image (default 5)\n"
    "  --threads N     threads inside one run (default: one per physical core)\n"
    "  --provider P    cpu, cuda or tensorrt (default cpu)\n"
    "  --engine-cache DIR   where TensorRT keeps its engines\n"
    "  --fp16          let TensorRT use float16 outside the quantized layers\n"
    "Exit codes: 0 done, 2 usage, 4 an image, 5 the bundle, 7 ONNX Runtime.\n";

struct Arguments {
    bool json = false;
    int bench = 0, batch = 1, top = 5;
    regcache_model_params params = regcache_model_default_params();
    std::string bundle;
    std::vector<std::string> images;
};

[[noreturn]] void usage(const std::string &problem) {
    std::fprintf(stderr, "regcache_classify: %s\n%s", problem.c_str(), kUsage);
    std::exit(2);
}

[[noreturn]] void stop(regcache_status status) {
    std::fprintf(stderr, "regcache_classify: %s\n", regcache_last_error());
    std::exit(regcache_exit_code(status));
}

void check(regcache_status status) {
    if (status != REGCACHE_OK) stop(status);
}

Arguments parse(int argc, char **argv) {
    Arguments arguments;
    std::vector<std::string> rest;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const auto value = [&]() -> const char * {
            if (i + 1 >= argc) usage(word + " needs a value");
            return argv[++i];
        };
        const auto count = [&] {
            char *end = nullptr;
            const char *text = value();
            const long number = std::strtol(text, &end, 10);
            if (*end || end == text || number < 1 || number > 1000000)
                usage(word + " needs a whole number from 1 on");
            return int(number);
        };
        if (word == "--json") {
            arguments.json = true;
        } else if (word == "--bench") {
            arguments.bench = count();
        } else if (word == "--batch") {
            arguments.batch = count();
        } else if (word == "--top") {
            arguments.top = count();
        } else if (word == "--threads") {
            arguments.params.threads = count();
        } else if (word == "--engine-cache") {
            arguments.params.engine_cache = value();
        } else if (word == "--fp16") {
            arguments.params.fp16 = 1;
        } else if (word == "--provider") {
            const std::string name = value();
            if (name == "cuda")
                arguments.params.provider = REGCACHE_PROVIDER_CUDA;
            else if (name == "tensorrt")
                arguments.params.provider = REGCACHE_PROVIDER_TENSORRT;
            else if (name != "cpu")
                usage("--provider is cpu, cuda or tensorrt, not " + name);
        } else if (word == "--help" || word == "-h") {
            std::fputs(kUsage, stdout);
            std::exit(0);
        } else if (word.size() > 1 && word[0] == '-') {
            usage("unknown option " + word);
        } else {
            rest.push_back(word);
        }
    }
    if (rest.size() < 2) usage("give a bundle and at least one image");
    arguments.bundle = rest[0];
    arguments.images.assign(rest.begin() + 1, rest.end());
    return arguments;
}

struct Free {
    void operator()(regcache_model *model) const { regcache_model_free(model); }
    void operator()(regcache_context *context) const { regcache_context_free(context); }
};
using Model = std::unique_ptr<regcache_model, Free>;
using Context = std::unique_ptr<regcache_context, Free>;

std::string label(const regcache_model *model, int index) {
    const char *text = regcache_model_label(model, index);
    return text ? text : "class " + std::to_string(index);
}

long peak_memory_mib() {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return used.ru_maxrss / 1024;
}

nlohmann::json bench(regcache_context *context, const std::vector<std::uint8_t> &pixels,
                     std::vector<float> &features, const Arguments &arguments) {
    const auto batch = std::size_t(arguments.batch);
    for (int i = 0; i < 3; ++i) check(regcache_embed(context, pixels.data(), batch, features.data()));
    regcache_latency_reset(context);
    for (int i = 0; i < arguments.bench; ++i)
        check(regcache_embed(context, pixels.data(), batch, features.data()));
    regcache_latency_report latency;
    check(regcache_latency(context, &latency));
    return {{"runs", latency.runs},       {"batch", arguments.batch},
            {"mean_ms", latency.mean_ms}, {"p50_ms", latency.p50_ms},
            {"p90_ms", latency.p90_ms},   {"p99_ms", latency.p99_ms},
            {"images_per_second", latency.images_per_second},
            {"peak_memory_mib", peak_memory_mib()}};
}

int run(const Arguments &arguments) {
    regcache_model *opened = nullptr;
    check(regcache_model_open(arguments.bundle.c_str(), &arguments.params, &opened));
    const Model model(opened);
    regcache_context *created = nullptr;
    check(regcache_context_create(opened, &created));
    const Context context(created);

    const auto one = regcache_model_pixels_size(opened);
    const auto dim = std::size_t(regcache_model_output_dim(opened));
    const auto batch = std::size_t(arguments.batch);
    std::vector<std::uint8_t> pixels(one * batch);
    std::vector<float> features(dim * batch);
    const int classes = regcache_model_num_classes(opened);
    const int top = arguments.top < classes ? arguments.top : classes;
    std::vector<regcache_prediction> best(std::size_t(top > 0 ? top : 1));

    nlohmann::json results = nlohmann::json::array();
    regcache_status worst = REGCACHE_OK;
    for (const auto &image : arguments.images) {
        const auto status = regcache_preprocess_file(created, image.c_str(), pixels.data());
        if (status != REGCACHE_OK) {  // one bad file does not hide the others
            std::fprintf(stderr, "regcache_classify: %s\n", regcache_last_error());
            worst = status;
            continue;
        }
        check(regcache_embed(created, pixels.data(), 1, features.data()));
        check(regcache_classify(created, features.data(), 1, top > 0 ? top : 1, best.data()));
        nlohmann::json list = nlohmann::json::array();
        if (!arguments.json) std::printf("%s\n", image.c_str());
        for (const auto &prediction : best) {
            const auto name = label(opened, prediction.index);
            list.push_back(
                {{"index", prediction.index}, {"label", name}, {"score", prediction.score}});
            if (!arguments.json)
                std::printf("  %6.2f %%  %s\n", 100.0 * prediction.score, name.c_str());
        }
        results.push_back({{"image", image}, {"top", list}});
    }
    nlohmann::json document{{"results", results}};
    if (arguments.bench && !results.empty()) {
        for (std::size_t i = 1; i < batch; ++i)  // the last image, `batch` times
            std::memcpy(pixels.data() + i * one, pixels.data(), one);
        const auto figures = bench(created, pixels, features, arguments);
        document["bench"] = figures;
        if (!arguments.json)
            std::printf("%d runs of %d: p50 %.3f ms, p90 %.3f ms, p99 %.3f ms, %.1f images/s, "
                        "peak memory %ld MiB\n",
                        arguments.bench, arguments.batch, figures["p50_ms"].get<double>(),
                        figures["p90_ms"].get<double>(), figures["p99_ms"].get<double>(),
                        figures["images_per_second"].get<double>(),
                        figures["peak_memory_mib"].get<long>());
    }
    // file names may hold bytes that are no UTF-8
    if (arguments.json)
        std::puts(document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return regcache_exit_code(worst);
}

}  // namespace

int main(int argc, char **argv) { return run(parse(argc, argv)); }
