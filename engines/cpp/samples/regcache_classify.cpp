// regcache_classify [options] BUNDLE IMAGE...   the five most likely classes of each image
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "regcache.h"

namespace {

using Json = nlohmann::ordered_json;  // the fields stay in the order of `regcache eval`

constexpr char kUsage[] =
    "usage: regcache_classify [options] BUNDLE IMAGE...\n"
    "  --json          print one JSON object, as `regcache eval --images --json` does\n"
    "  --bench N       run N times after a warm-up; print latency, images/s and memory\n"
    "  --batch N       images per run of --bench (default 1, or what the bundle is made for)\n"
    "  --top N         classes per image (default 5)\n"
    "  --threads N     threads inside one run (default: one per physical core)\n"
    "  --pieces        a second copy of the model, for batches: each thread runs its own images\n"
    "  --provider P    cpu, cuda or tensorrt (default cpu)\n"
    "  --head FILE     classes of a file of `regcache head`, in place of the bundle's own\n"
    "  --engine-cache DIR   where TensorRT keeps its engines\n"
    "  --fp16          let TensorRT use float16 outside the quantized layers\n"
    "Exit codes: 0 done, 2 usage, 4 an image, 5 the bundle, 7 ONNX Runtime.\n";

struct Arguments {
    bool json = false;
    int bench = 0, batch = 0, top = 5;
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

// The exit code, which says so where what was printed did not arrive.
int written(int code) {
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
    std::fputs("regcache_classify: cannot use the output; is the disk full?\n", stderr);
    return 2;
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
        } else if (word == "--pieces") {
            arguments.params.pieces = 1;
        } else if (word == "--threads") {
            arguments.params.threads = count();
        } else if (word == "--head") {
            arguments.params.head = value();
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
            std::exit(written(0));
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

// What the results were made by, beside the runners of `regcache eval`.
const char *runner(regcache_provider provider) {
    switch (provider) {
        case REGCACHE_PROVIDER_CUDA: return "cpp-cuda";
        case REGCACHE_PROVIDER_TENSORRT: return "cpp-tensorrt";
        default: return "cpp";
    }
}

// A warning goes to stderr at once and into the JSON document.
void keep_warning(const char *message, void *list) {
    std::fprintf(stderr, "regcache_classify: %s\n", message);
    static_cast<Json *>(list)->push_back(message);
}

// Linux's own figure first: ru_maxrss remembers the program that started this one.
long peak_memory_mib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return std::atol(line.c_str() + 6) / 1024;
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return used.ru_maxrss / 1024;
}

// The image in `pixels`, `batch` times in each run.
Json bench(regcache_context *context, std::vector<std::uint8_t> pixels, std::size_t batch,
           std::size_t dim, int runs) {
    const std::size_t one = pixels.size();
    pixels.resize(one * batch);
    for (std::size_t i = 1; i < batch; ++i)
        std::memcpy(pixels.data() + i * one, pixels.data(), one);
    std::vector<float> features(dim * batch);
    for (int i = 0; i < 3; ++i) check(regcache_embed(context, pixels.data(), batch, features.data()));
    regcache_latency_reset(context);
    for (int i = 0; i < runs; ++i)
        check(regcache_embed(context, pixels.data(), batch, features.data()));
    regcache_latency_report latency;
    check(regcache_latency(context, &latency));
    return {{"runs", latency.runs},       {"batch", batch},
            {"mean_ms", latency.mean_ms}, {"p50_ms", latency.p50_ms},
            {"p90_ms", latency.p90_ms},   {"p99_ms", latency.p99_ms},
            {"images_per_second", latency.images_per_second},
            {"peak_memory_mib", peak_memory_mib()}};
}

int run(const Arguments &arguments) {
    const char *on = runner(arguments.params.provider);
    Json warnings = Json::array();
    auto params = arguments.params;
    params.warning = keep_warning;
    params.warning_user_data = &warnings;
    regcache_model *opened = nullptr;
    check(regcache_model_open(arguments.bundle.c_str(), &params, &opened));
    const Model model(opened);
    regcache_context *created = nullptr;
    check(regcache_context_create(opened, &created));
    const Context context(created);

    const auto one = regcache_model_pixels_size(opened);
    const auto dim = std::size_t(regcache_model_output_dim(opened));
    // a bundle for runs of a fixed size gets the image as often as that
    const auto fixed = std::size_t(regcache_model_batch(opened) ? regcache_model_batch(opened) : 1);
    const auto batch = arguments.batch ? std::size_t(arguments.batch) : fixed;
    std::vector<std::uint8_t> pixels(one * fixed);
    std::vector<float> features(dim * fixed);
    const int classes = regcache_model_num_classes(opened);
    const int top = arguments.top < classes ? arguments.top : classes;
    std::vector<regcache_prediction> best(std::size_t(top > 0 ? top : 1));

    const char *caution = regcache_model_caution(opened);
    if (caution && !arguments.json) std::printf("Note: %s.\n", caution);
    Json results = Json::array();
    regcache_status worst = REGCACHE_OK;
    for (const auto &image : arguments.images) {
        const auto status = regcache_preprocess_file(created, image.c_str(), pixels.data());
        if (status != REGCACHE_OK) {  // one bad file does not hide the others
            keep_warning(regcache_last_error(), &warnings);
            worst = status;
            continue;
        }
        for (std::size_t i = 1; i < fixed; ++i)
            std::memcpy(pixels.data() + i * one, pixels.data(), one);
        check(regcache_embed(created, pixels.data(), fixed, features.data()));
        check(regcache_classify(created, features.data(), 1, top > 0 ? top : 1, best.data()));
        Json list = Json::array();
        if (!arguments.json) std::printf("%s (%s)\n", image.c_str(), on);
        for (const auto &prediction : best) {
            const auto name = label(opened, prediction.index);
            list.push_back(
                {{"index", prediction.index}, {"label", name}, {"score", prediction.score}});
            if (!arguments.json)
                std::printf("  %6.2f %%  %s\n", 100.0 * prediction.score, name.c_str());
        }
        results.push_back({{"image", image}, {"on", on}, {"top", list}});
    }
    Json document{{"bundle", arguments.bundle}, {"on", Json::array({on})}, {"reference", on},
                  {"caution", nullptr}, {"notes", Json::array()}, {"warnings", nullptr},
                  {"results", results}};
    if (caution) document["caution"] = caution;
    if (arguments.bench && !results.empty()) {
        pixels.resize(one);
        const auto figures = bench(created, pixels, batch, dim, arguments.bench);
        document["bench"] = figures;
        if (!arguments.json)
            std::printf("%d runs of %zu: p50 %.3f ms, p90 %.3f ms, p99 %.3f ms, %.1f images/s, "
                        "peak memory %ld MiB\n",
                        arguments.bench, batch, figures["p50_ms"].get<double>(),
                        figures["p90_ms"].get<double>(), figures["p99_ms"].get<double>(),
                        figures["images_per_second"].get<double>(),
                        figures["peak_memory_mib"].get<long>());
    }
    document["warnings"] = warnings;  // --bench may have added one
    // file names may hold bytes that are no UTF-8
    if (arguments.json)
        std::puts(document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return regcache_exit_code(worst);
}

}  // namespace

int main(int argc, char **argv) { return written(run(parse(argc, argv))); }
