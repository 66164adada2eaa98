// regcache_dump BUNDLE OUT IMAGE...   for tests/cpp: one line per image on stdout, its
// status or "ok"; OUT.pixels holds the uint8 [H, W, 3] of every good one, OUT.features the float32.
// Without images it only opens the bundle and prints the status.
#include <cstdio>
#include <string>
#include <vector>

#include "regcache.h"

namespace {

void line(regcache_status status) {
    if (status == REGCACHE_OK)
        std::puts("ok");
    else
        std::printf("%s %s\n", regcache_status_name(status), regcache_last_error());
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    regcache_model_params params = regcache_model_default_params();
    params.threads = 1;
    regcache_model *model = nullptr;
    const auto opened = regcache_model_open(argv[1], &params, &model);
    if (opened != REGCACHE_OK || argc == 3) {
        line(opened);
        regcache_model_free(model);
        return regcache_exit_code(opened);
    }
    regcache_context *context = nullptr;
    if (regcache_context_create(model, &context) != REGCACHE_OK) return 1;
    std::FILE *pixels_file = std::fopen((std::string(argv[2]) + ".pixels").c_str(), "wb");
    std::FILE *features_file = std::fopen((std::string(argv[2]) + ".features").c_str(), "wb");
    if (!pixels_file || !features_file) return 1;
    std::vector<uint8_t> pixels(regcache_model_pixels_size(model));
    std::vector<float> features(std::size_t(regcache_model_output_dim(model)));
    for (int i = 3; i < argc; ++i) {
        auto status = regcache_preprocess_file(context, argv[i], pixels.data());
        if (status == REGCACHE_OK) {
            status = regcache_embed(context, pixels.data(), 1, features.data());
            std::fwrite(pixels.data(), 1, pixels.size(), pixels_file);
            std::fwrite(features.data(), sizeof(float), features.size(), features_file);
        }
        line(status);
    }
    std::fclose(pixels_file);
    std::fclose(features_file);
    std::vector<regcache_probe_report> reports(std::size_t(regcache_model_num_probes(model)));
    if (!reports.empty()) regcache_monitor(context, reports.data());
    for (const auto &probe : reports)
        std::printf("probe %llu %llu %llu %g %g %s\n", static_cast<unsigned long long>(probe.low),
                    static_cast<unsigned long long>(probe.high),
                    static_cast<unsigned long long>(probe.codes), probe.calibrated_low_rate,
                    probe.calibrated_high_rate, probe.name);
    regcache_context_free(context);
    regcache_model_free(model);
    return 0;
}
