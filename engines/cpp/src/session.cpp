#include "session.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "cpu.h"
#include "error.h"
#include "providers.h"

namespace regcache {
namespace {

constexpr char kNowhere[] = "/nonexistent/weights of a graph in memory lie inside of it";
// Two images of a ViT-B/16 at 224 pixels; regcache_engines/pieces.py has the measurement.
constexpr long kPieceTokens = 400;
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
      width_(bundle.preprocess.width),
      process_(getpid()) {
    const int limit = core_limit();
    const bool limited = !params.threads && limit && unsigned(limit) < usable_cores();
    session_ = load(bundle, params, limited ? limit : params.threads);
    check_contract(bundle);
    if (params.provider == REGCACHE_PROVIDER_CPU && !batch_) set_pieces(bundle, params);
#ifdef __GLIBC__
    malloc_trim(0);  // the weights as they were in the file: half of what loading took
#endif
}

Session::~Session() {
    if (getpid() == process_) return;
    static_cast<void>(session_.release());
    static_cast<void>(single_.release());
}

// `threads`: inside an operator; 0 leaves that to ONNX Runtime, one per physical core.
Ort::Session Session::load(const Bundle &bundle, const regcache_model_params &params,
                           int threads) const {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    // spinning, the threads take the cores from every other session of the process
    options.AddConfigEntry("session.force_spinning_stop", "1");
    // u8u8 products: exact where u8s8 ones saturate, and 1.45 times the CPU time where they do not
    if (may_saturate()) options.AddConfigEntry("session.x64quantprecision", "1");
    if (threads > 0) options.SetIntraOpNumThreads(threads);
    // a graph in memory would else take weights from the working folder, which no hash covers
    options.AddConfigEntry("session.model_external_initializers_file_folder_path", kNowhere);
    add_provider(options, params, bundle.manifest);
    try {
        return Ort::Session(environment(), bundle.model.data(), bundle.model.size(), options);
    } catch (const Ort::Exception &error) {
        failed("ONNX Runtime cannot load " + model_path_ + ": " + error.what());
    }
}

void Session::set_pieces(const Bundle &bundle, const regcache_model_params &params) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session_.GetModelMetadata();
    const auto text = metadata.LookupCustomMetadataMapAllocated("regcache.tokens", allocator);
    const long tokens = text ? std::strtol(text.get(), nullptr, 10) : 0;
    if (tokens < 1) return;
    piece_ = std::size_t(std::max(1L, kPieceTokens / tokens));
    if (!params.pieces) return;
    workers_ = std::size_t(params.threads ? params.threads : physical_cores());
    if (workers_ > 1) single_ = load(bundle, params, 1);
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
    if (shape[0] == 0 || shape[0] > kMaxBatch) wrong("a batch of no image, or of more than 65536");
    batch_ = std::max<std::int64_t>(shape[0], 0);
    std::size_t others = 0;  // beside the probes' codes
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
        const auto output = session_.GetOutputTypeInfo(i);
        others += output.GetONNXType() != ONNX_TYPE_TENSOR ||
                  !is_bytes(output.GetTensorTypeAndShapeInfo().GetElementType());
    }
    if (others > 1) wrong("other outputs than its features");

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

namespace {

// Images of every piece: at most `size`, about equal, and every worker gets as many pieces.
std::vector<std::size_t> piece_counts(std::size_t images, std::size_t size, std::size_t workers) {
    std::size_t pieces = (images + size - 1) / size;
    pieces = std::min(images, (pieces + workers - 1) / workers * workers);
    std::vector<std::size_t> counts;
    for (std::size_t i = 0; i < pieces; ++i)
        counts.push_back(images / pieces + (i < images % pieces));
    return counts;
}

}  // namespace

std::size_t Session::image_bytes() const {
    return std::size_t(3 * height_ * width_) * (takes_bytes() ? 1 : sizeof(float));
}

void Session::run(const void *input, std::size_t count, float *features, Codes &codes) const {
    // it would wait for locks as other threads held them at the fork
    if (getpid() != process_)
        failed("the model was opened before the process forked, and ONNX Runtime does not survive "
               "that; open it in the child");
    const auto *bytes = static_cast<const std::uint8_t *>(input);
    const bool spread = workers_ > 1 && count >= workers_;
    const auto counts = piece_counts(count, piece_ ? piece_ : count, spread ? workers_ : 1);
    std::vector<Codes> parts(counts.size());
    if (spread) {
        run_in_threads(bytes, counts, features, parts);
    } else {
        std::size_t done = 0;
        for (std::size_t i = 0; i < counts.size(); done += counts[i++])
            run_in(session_, bytes + done * image_bytes(), counts[i],
                   features + done * std::size_t(dim_), parts[i]);
    }
    for (std::size_t i = 0; i < count * std::size_t(dim_); ++i)
        if (!std::isfinite(features[i]))
            failed("the features of image " + std::to_string(i / std::size_t(dim_)) +
                   " of this batch hold NaN or infinite values; export the bundle again");
    codes = std::move(parts[0]);
    for (std::size_t i = 1; i < parts.size(); ++i)
        for (std::size_t probe = 0; probe < codes.size(); ++probe)
            codes[probe].insert(codes[probe].end(), parts[i][probe].begin(), parts[i][probe].end());
}

// Every worker takes the next piece until there is none, or until one has failed.
void Session::run_in_threads(const std::uint8_t *input, const std::vector<std::size_t> &counts,
                             float *features, std::vector<Codes> &codes) const {
    std::vector<std::size_t> first(counts.size(), 0);
    for (std::size_t i = 1; i < counts.size(); ++i) first[i] = first[i - 1] + counts[i - 1];
    std::atomic<std::size_t> next{0};
    std::mutex lock;
    std::exception_ptr error;
    const auto work = [&] {
        try {
            for (std::size_t i; (i = next++) < counts.size();)
                run_in(single_, input + first[i] * image_bytes(), counts[i],
                       features + first[i] * std::size_t(dim_), codes[i]);
        } catch (...) {
            next = counts.size();
            const std::lock_guard<std::mutex> guard(lock);
            error = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    try {
        while (threads.size() + 1 < std::min(workers_, counts.size())) threads.emplace_back(work);
    } catch (const std::system_error &) {  // as many as the system gives
    }
    work();
    for (auto &thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
}

void Session::run_in(Ort::Session &session, const std::uint8_t *input, std::size_t count,
                     float *features, Codes &codes) const {
    const auto n = std::int64_t(count);
    const std::int64_t planar[] = {n, 3, height_, width_}, pixels[] = {n, height_, width_, 3};
    const std::int64_t *shape = interleaved_ ? pixels : planar;
    const std::int64_t feature_shape[] = {std::int64_t(count), dim_};
    std::vector<const char *> outputs;
    for (std::size_t i = 1; i < names_.size(); ++i) outputs.push_back(names_[i].c_str());
    const char *inputs[] = {names_[0].c_str()};
    try {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        const auto image = Ort::Value::CreateTensor(
            memory, const_cast<std::uint8_t *>(input), count * image_bytes(), shape, 4, type_);
        std::vector<Ort::Value> results(outputs.size());
        results[0] = Ort::Value::CreateTensor<float>(
            memory, features, count * std::size_t(dim_), feature_shape, 2);
        session.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs.data(), results.data(),
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
}

}  // namespace regcache
