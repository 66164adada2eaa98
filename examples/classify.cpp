/* Name what is on photographs, in C++: classify BUNDLE IMAGE...
 *
 * find_package(regcache REQUIRED) and link regcache::regcache (docs/cpp.md), or by hand:
 *     g++ -std=c++17 -I engines/cpp/include examples/classify.cpp -o classify
 *         -L build/cpp -lregcache -Wl,-rpath,$PWD/build/cpp
 */
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include <regcache.h>

namespace {

int failed(regcache_status status) {
    std::fprintf(stderr, "%s\n", regcache_last_error());
    return regcache_exit_code(status);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3) return std::fprintf(stderr, "usage: classify BUNDLE IMAGE...\n"), 2;
    regcache_model *opened = nullptr;
    if (const auto status = regcache_model_open(argv[1], nullptr, &opened)) return failed(status);
    const std::unique_ptr<regcache_model, decltype(&regcache_model_free)> model(
        opened, regcache_model_free);
    regcache_context *created = nullptr;  // scratch memory: one for each thread
    if (const auto status = regcache_context_create(opened, &created)) return failed(status);
    const std::unique_ptr<regcache_context, decltype(&regcache_context_free)> context(
        created, regcache_context_free);

    std::vector<std::uint8_t> pixels(regcache_model_pixels_size(opened));
    std::vector<float> features(std::size_t(regcache_model_output_dim(opened)));
    for (int i = 2; i < argc; ++i) {
        regcache_prediction best;
        auto status = regcache_preprocess_file(created, argv[i], pixels.data());
        if (!status) status = regcache_embed(created, pixels.data(), 1, features.data());
        if (!status) status = regcache_classify(created, features.data(), 1, 1, &best);
        if (status) return failed(status);
        const char *label = regcache_model_label(opened, best.index);
        std::printf("%s: %.2f %% %s\n", argv[i], 100 * best.score, label ? label : "?");
    }
    return 0;
}
