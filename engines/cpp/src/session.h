#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.h"
#include "onnxruntime.h"
#include "regcache.h"

namespace regcache {

// The bundle's graph in ONNX Runtime. Running is safe from many threads at once.
class Session {
public:
    // Throws Error: the provider or the model does not load, or the graph is not what the manifest
    // and the preprocessing say.
    Session(const Bundle &bundle, const regcache_model_params &params);
    // In a forked child it lets go of nothing: ONNX Runtime would wait for its threads, which are
    // the parent's.
    ~Session();
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    // Batches run in pieces of a few images, which stay in the cache, where the graph says how many
    // tokens it has (docs/cpu.md); the features are the same bit for bit.
    // `input`: float32 or uint8 [count, 3, height, width], or uint8 [count, height, width, 3] where
    // `interleaved` -> `features` [count, dim]. The codes of the probes come back in `codes`, one
    // vector per probe.
    // Throws Error: ONNX Runtime failed, or gave NaN; or the process forked since it was loaded.
    void run(const void *input, std::size_t count, float *features,
             std::vector<std::vector<std::uint8_t>> &codes) const;

    std::int64_t dim() const { return dim_; }
    bool takes_bytes() const { return type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8; }
    bool interleaved() const { return interleaved_; }
    // Images of one run; 0 where the graph takes any number.
    std::int64_t batch() const { return batch_; }

private:
    using Codes = std::vector<std::vector<std::uint8_t>>;

    Ort::Session load(const Bundle &bundle, const regcache_model_params &params, int threads) const;
    void check_contract(const Bundle &bundle);
    void set_pieces(const Bundle &bundle, const regcache_model_params &params);
    void run_in(Ort::Session &session, const std::uint8_t *input, std::size_t count,
                float *features, Codes &codes) const;
    void run_in_threads(const std::uint8_t *input, const std::vector<std::size_t> &counts,
                        float *features, std::vector<Codes> &codes) const;
    std::size_t image_bytes() const;

    mutable Ort::Session session_{nullptr};
    mutable Ort::Session single_{nullptr};  // of one thread: pieces run in it side by side
    std::size_t piece_ = 0;                 // images of a piece; 0: batches run whole
    std::size_t workers_ = 1;               // pieces that run side by side
    std::string model_path_;
    ONNXTensorElementDataType type_;
    std::int64_t height_, width_, dim_ = 0, batch_ = 0;
    bool interleaved_ = false;
    std::vector<std::string> names_;  // input, features, probes
    int process_;                     // that loaded it
};

}  // namespace regcache
