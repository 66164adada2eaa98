#include "session.h"

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "error.h"
#include "providers.h"

namespace regcache {
namespace {

constexpr char kNowhere[] = "/nonexistent/weights of a graph in memory lie inside of it";
// The C interface gives both as int32, and callers allocate by them.
constexpr std::int64_t kMaxBatch = 65536, kMaxDim = std::int64_t(1) << 20;

[[noreturn]] void failed(const std::string &what) { throw Error(REGCACHE_RUNTIME_FAILED, what); }

bool is_bytes(ONNXTensorElementDataType type) {
    return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
}

}  // namespace

Session::Session(const Bundle &bundle, const regcache_model_params &params)
    : model_path_(bundle.model_path),
      type_(bundle.manifest.takes_bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                        : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
      height_(bundle.preprocess.height),
      width_(bundle.preprocess.width) {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    // spinning, the threads take the cores from every other session of the process
    options.AddConfigEntry("session.force_spinning_stop", "1");
    // u8u8 products: exact where u8s8 ones saturate, and 1.45 times the CPU time where they do not
    if (may_saturate()) options.AddConfigEntry("session.x64quantprecision", "1");
    if (params.threads > 0) {
        options.SetIntraOpNumThreads(params.threads);
    } else if (const int limit = core_limit(); limit && unsigned(limit) < usable_cores()) {
        options.SetIntraOpNumThreads(limit);
    }
    // a graph in memory would else take weights from the working folder, which no hash covers
    options.AddConfigEntry("session.model_external_initializers_file_folder_path", kNowhere);
    add_provider(options, params, bundle.manifest);
    try {
        session_ = Ort::Session(environment(), bundle.model.data(), bundle.model.size(), options);
    } catch (const Ort::Exception &error) {
        failed("ONNX Runtime cannot load " + model_path_ + ": " + error.what());
    }
    check_contract(bundle);
}

void Session::check_contract(const Bundle &bundle) {
    const auto &manifest = bundle.manifest;
    names_ = {manifest.input, manifest.output};
    for (const auto &probe : manifest.probes) names_.push_back(probe.output);
    Ort::AllocatorWithDefaultOptions allocator;
    auto wrong = [&](const std::string &what) { failed(model_path_ + " has " + what); };

    if (session_.GetInputCount() != 1 ||
        manifest.input != session_.GetInputNameAllocated(0, allocator).get())
        wrong("other inputs than the manifest says");
    const auto input = session_.GetInputTypeInfo(0);
    if (input.GetONNXType() != ONNX_TYPE_TENSOR) wrong("an input that is no tensor");
    const auto image = input.GetTensorTypeAndShapeInfo();
    const auto shape = image.GetShape();
    if (image.GetElementType() != type_) wrong("an input of another type than the manifest says");
    using Shape = std::vector<std::int64_t>;
    const Shape rest(shape.begin() + (shape.empty() ? 0 : 1), shape.end());
    interleaved_ = takes_bytes() && rest == Shape{height_, width_, 3};
    if (!interleaved_ && rest != Shape{3, height_, width_})
        wrong("an input of another shape than its preprocessing gives");
    batch_ = std::max<std::int64_t>(shape[0], 0);
    if (batch_ > kMaxBatch) wrong("a batch of more than 65536 images");

    for (std::size_t name = 1; name < names_.size(); ++name) {
        bool found = false;
        for (std::size_t i = 0; !found && i < session_.GetOutputCount(); ++i) {
            if (names_[name] != session_.GetOutputNameAllocated(i, allocator).get()) continue;
            found = true;
            const auto output = session_.GetOutputTypeInfo(i);
            if (output.GetONNXType() != ONNX_TYPE_TENSOR) wrong("an output that is no tensor");
            const auto tensor = output.GetTensorTypeAndShapeInfo();
            if (name > 1) {
                if (!is_bytes(tensor.GetElementType())) wrong("a probe that is not quantized");
                continue;
            }
            const auto features = tensor.GetShape();
            if (tensor.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
                features.size() != 2 || features[1] < 1)
                wrong("features that are not float32 [batch, E]");
            if (features[1] > kMaxDim) wrong("features of more than 2^20 numbers");
            dim_ = features[1];
        }
        if (!found) wrong("no output '" + names_[name] + "'");
    }
    if (bundle.head && bundle.head->dim != dim_)
        throw Error(REGCACHE_BUNDLE_DAMAGED,
                    "the text features have " + std::to_string(bundle.head->dim) +
                        " numbers and the embeddings " + std::to_string(dim_) +
                        "; they come from different models");
}

void Session::run(void *input, std::size_t count, float *features,
                  std::vector<std::vector<std::uint8_t>> &codes) const {
    const auto n = std::int64_t(count);
    const std::int64_t planar[] = {n, 3, height_, width_}, pixels[] = {n, height_, width_, 3};
    const std::int64_t *shape = interleaved_ ? pixels : planar;
    const std::int64_t feature_shape[] = {std::int64_t(count), dim_};
    const std::size_t values = count * 3 * std::size_t(height_) * std::size_t(width_);
    const std::size_t size = takes_bytes() ? 1 : sizeof(float);
    std::vector<const char *> outputs;
    for (std::size_t i = 1; i < names_.size(); ++i) outputs.push_back(names_[i].c_str());
    const char *inputs[] = {names_[0].c_str()};
    try {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        const auto image = Ort::Value::CreateTensor(memory, input, values * size, shape, 4, type_);
        std::vector<Ort::Value> results(outputs.size());
        results[0] = Ort::Value::CreateTensor<float>(
            memory, features, count * std::size_t(dim_), feature_shape, 2);
        session_.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs.data(), results.data(),
                     results.size());
        codes.resize(results.size() - 1);
        for (std::size_t i = 1; i < results.size(); ++i) {
            const auto *first = results[i].GetTensorData<std::uint8_t>();
            const auto info = results[i].GetTensorTypeAndShapeInfo();
            codes[i - 1].assign(first, first + info.GetElementCount());
        }
    } catch (const Ort::Exception &error) {
        failed("ONNX Runtime failed on " + model_path_ + ": " + error.what());
    }
    for (std::size_t i = 0; i < count * std::size_t(dim_); ++i)
        if (!std::isfinite(features[i]))
            failed("the features of image " + std::to_string(i / std::size_t(dim_)) +
                   " of this batch hold NaN or infinite values; export the bundle again");
}

}  // namespace regcache
