// regcache_model_default_params for programs that were compiled with the first header: it was a
// function that returned the struct, which had these fields. regcache.h, where the name is an inline
// function of its own, is not included.
#include <cstddef>
#include <cstdint>

namespace regcache {

struct FirstParams {
    std::size_t struct_size;
    const char *onnxruntime_library;
    std::int32_t threads;
    int provider;
    std::int32_t device_id;
    const char *engine_cache;
    std::int32_t fp16;
    std::int64_t max_pixels;
    double saturation_warning;
    void (*warning)(const char *, void *);
    void *warning_user_data;
};

}  // namespace regcache

extern "C" {

void regcache_model_params_init(void *params, std::size_t struct_size);

__attribute__((visibility("default"))) regcache::FirstParams regcache_model_default_params(void) {
    regcache::FirstParams params;
    regcache_model_params_init(&params, sizeof params);
    return params;
}

}
