#include "providers.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "error.h"

namespace regcache {
namespace {

using Options = std::vector<std::pair<const char *, std::string>>;

struct Split {
    std::vector<const char *> keys, values;

    explicit Split(const Options &options) {
        for (const auto &[key, value] : options) {
            keys.push_back(key);
            values.push_back(value.c_str());
        }
    }
};

void require(const char *name) {
    const auto available = Ort::GetAvailableProviders();
    if (std::find(available.begin(), available.end(), name) != available.end()) return;
    std::string list;
    for (const auto &other : available) list += (list.empty() ? "" : ", ") + other;
    throw Error(REGCACHE_PROVIDER_MISSING,
                std::string("this ONNX Runtime has no ") + name + "; it has " + list +
                    ". Take a build of ONNX Runtime for this GPU");
}

void add_cuda(Ort::SessionOptions &options, const regcache_model_params &params) {
    const auto &api = Ort::GetApi();
    OrtCUDAProviderOptionsV2 *raw = nullptr;
    Ort::ThrowOnError(api.CreateCUDAProviderOptions(&raw));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2 *)> cuda(
        raw, api.ReleaseCUDAProviderOptions);
    const Options wanted{{"device_id", std::to_string(params.device_id)}};
    const Split split(wanted);
    Ort::ThrowOnError(api.UpdateCUDAProviderOptions(cuda.get(), split.keys.data(),
                                                    split.values.data(), split.keys.size()));
    options.AppendExecutionProvider_CUDA_V2(*cuda);
}

void add_tensorrt(Ort::SessionOptions &options, const regcache_model_params &params,
                  const Manifest &manifest) {
    const auto &api = Ort::GetApi();
    OrtTensorRTProviderOptionsV2 *raw = nullptr;
    Ort::ThrowOnError(api.CreateTensorRTProviderOptions(&raw));
    const std::unique_ptr<OrtTensorRTProviderOptionsV2, void (*)(OrtTensorRTProviderOptionsV2 *)>
        tensorrt(raw, api.ReleaseTensorRTProviderOptions);
    Options wanted{{"device_id", std::to_string(params.device_id)},
                   {"trt_fp16_enable", params.fp16 ? "1" : "0"},
                   {"trt_int8_enable", "1"}};
    if (params.engine_cache && *params.engine_cache) {
        wanted.emplace_back("trt_engine_cache_enable", "1");
        wanted.emplace_back("trt_engine_cache_path", params.engine_cache);
        // ONNX Runtime names an engine by names of file and graph, which all bundles share
        wanted.emplace_back("trt_engine_cache_prefix",
                            manifest.files.at("model.onnx").sha256.substr(0, 16));
        wanted.emplace_back("trt_timing_cache_enable", "1");
        wanted.emplace_back("trt_timing_cache_path", params.engine_cache);
    }
    const Split split(wanted);
    Ort::ThrowOnError(api.UpdateTensorRTProviderOptions(tensorrt.get(), split.keys.data(),
                                                        split.values.data(), split.keys.size()));
    options.AppendExecutionProvider_TensorRT_V2(*tensorrt);
}

}  // namespace

void add_provider(Ort::SessionOptions &options, const regcache_model_params &params,
                  const Manifest &manifest) {
    if (params.provider == REGCACHE_PROVIDER_CPU) return;
    const bool tensorrt = params.provider == REGCACHE_PROVIDER_TENSORRT;
    if (manifest.for_cpu)
        throw Error(REGCACHE_RUNTIME_FAILED,
                    std::string("the bundle was exported with --target onnxruntime, whose integer "
                                "products ONNX Runtime would leave to the CPU; export it with "
                                "--target ") +
                        (tensorrt ? "tensorrt" : "onnx"));
    if (tensorrt) require("TensorrtExecutionProvider");
    require("CUDAExecutionProvider");
    try {
        if (tensorrt) add_tensorrt(options, params, manifest);
        add_cuda(options, params);
    } catch (const Ort::Exception &error) {
        // listed, but its CUDA or TensorRT libraries do not load, or there is no device
        throw Error(REGCACHE_PROVIDER_MISSING,
                    std::string("ONNX Runtime cannot use the GPU here: ") + error.what());
    }
}

}  // namespace regcache
