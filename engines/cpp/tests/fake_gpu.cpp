// An ONNX Runtime that claims to have CUDA and TensorRT, prints the options that it is given to
// stderr, and runs on the CPU. The real one is what REGCACHE_REAL_ONNXRUNTIME names.
#include <cstdio>
#include <cstdlib>

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

namespace {

char cpu[] = "CPUExecutionProvider";
char cuda[] = "CUDAExecutionProvider";
char tensorrt[] = "TensorrtExecutionProvider";
char *available[] = {cpu, cuda, tensorrt};
char options;  // its address stands for the options of either provider

void print(const char *provider, const char *const *keys, const char *const *values, size_t count) {
    for (size_t i = 0; i < count; ++i)
        std::fprintf(stderr, "%s %s=%s\n", provider, keys[i], values[i]);
}

const OrtApiBase *real() {
    static const auto *base = [] {
        void *handle = dlopen(std::getenv("REGCACHE_REAL_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
        if (!handle) std::abort();
        return reinterpret_cast<const OrtApiBase *(*)()>(dlsym(handle, "OrtGetApiBase"))();
    }();
    return base;
}

const OrtApi *api(uint32_t version) noexcept {
    static OrtApi changed;
    changed = *real()->GetApi(version);
    changed.GetAvailableProviders = [](char ***names, int *count) noexcept -> OrtStatusPtr {
        *names = available;
        *count = 3;
        return nullptr;
    };
    changed.ReleaseAvailableProviders = [](char **, int) noexcept -> OrtStatusPtr {
        return nullptr;
    };
    changed.AddSessionConfigEntry = [](OrtSessionOptions *made, const char *key,
                                       const char *value) noexcept {
        print("session", &key, &value, 1);
        return real()->GetApi(ORT_API_VERSION)->AddSessionConfigEntry(made, key, value);
    };
    changed.CreateCUDAProviderOptions = [](OrtCUDAProviderOptionsV2 **made) noexcept {
        *made = reinterpret_cast<OrtCUDAProviderOptionsV2 *>(&options);
        return OrtStatusPtr();
    };
    changed.UpdateCUDAProviderOptions = [](OrtCUDAProviderOptionsV2 *, const char *const *keys,
                                           const char *const *values, size_t count) noexcept {
        print("cuda", keys, values, count);
        return OrtStatusPtr();
    };
    changed.ReleaseCUDAProviderOptions = [](OrtCUDAProviderOptionsV2 *) noexcept {};
    changed.SessionOptionsAppendExecutionProvider_CUDA_V2 =
        [](OrtSessionOptions *, const OrtCUDAProviderOptionsV2 *) noexcept {
            return OrtStatusPtr();
        };
    changed.CreateTensorRTProviderOptions = [](OrtTensorRTProviderOptionsV2 **made) noexcept {
        *made = reinterpret_cast<OrtTensorRTProviderOptionsV2 *>(&options);
        return OrtStatusPtr();
    };
    changed.UpdateTensorRTProviderOptions =
        [](OrtTensorRTProviderOptionsV2 *, const char *const *keys, const char *const *values,
           size_t count) noexcept {
            print("tensorrt", keys, values, count);
            return OrtStatusPtr();
        };
    changed.ReleaseTensorRTProviderOptions = [](OrtTensorRTProviderOptionsV2 *) noexcept {};
    changed.SessionOptionsAppendExecutionProvider_TensorRT_V2 =
        [](OrtSessionOptions *, const OrtTensorRTProviderOptionsV2 *) noexcept {
            return OrtStatusPtr();
        };
    return &changed;
}

const char *version() noexcept { return real()->GetVersionString(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase *OrtGetApiBase() noexcept {
    static const OrtApiBase base{api, version};
    return &base;
}
