// Readers of protobuf differ in what else they take (groups, tags of more than 32 bits, numbers that
// are longer than need be), and writers of ONNX write none of it: what is odd counts as external.
#include "onnx_wire.h"

#include <cstdint>

namespace regcache {
namespace {

constexpr int kMaxDepth = 100;  // of messages; protobuf's own limit

enum class Message {
    model, training, graph, function, node, attribute, sparse, tensor, external, other
};

// Fields of onnx.proto that lead to tensors; TensorProto.external_data is the end.
Message child(Message message, std::uint64_t field) {
    switch (message) {
        case Message::model:
            return field == 7    ? Message::graph
                   : field == 20 ? Message::training
                   : field == 25 ? Message::function
                                 : Message::other;
        case Message::training: return field == 1 || field == 2 ? Message::graph : Message::other;
        case Message::graph:
            return field == 1    ? Message::node
                   : field == 5  ? Message::tensor
                   : field == 15 ? Message::sparse
                                 : Message::other;
        case Message::function:
            return field == 7 ? Message::node : field == 11 ? Message::attribute : Message::other;
        case Message::node: return field == 5 ? Message::attribute : Message::other;
        case Message::attribute:
            if (field == 5 || field == 10) return Message::tensor;
            if (field == 6 || field == 11) return Message::graph;
            return field == 22 || field == 23 ? Message::sparse : Message::other;
        case Message::sparse: return field == 1 || field == 2 ? Message::tensor : Message::other;
        case Message::tensor: return field == 13 ? Message::external : Message::other;
        case Message::external:
        case Message::other: break;
    }
    return Message::other;
}

struct Bytes {
    const std::uint8_t *at, *end;

    std::uint64_t left() const { return std::uint64_t(end - at); }
    bool skip(std::uint64_t count) {
        if (count > left()) return false;
        at += count;
        return true;
    }
    // False where it is odd.
    bool number(std::uint64_t &value) {
        value = 0;
        for (int shift = 0; at < end && shift < 64; shift += 7) {
            const std::uint64_t byte = *at++, part = byte & 0x7f;
            if (shift == 63 && part > 1) return false;
            value |= part << shift;
            if (byte < 0x80) return byte != 0 || shift == 0;
        }
        return false;
    }
};

bool external_or_odd(Message message, Bytes bytes, int depth) {
    if (depth > kMaxDepth) return true;
    while (bytes.at < bytes.end) {
        std::uint64_t tag, size;
        if (!bytes.number(tag) || tag < 8 || tag >> 32) return true;
        switch (tag & 7) {
            case 0:
                if (!bytes.number(size)) return true;
                break;
            case 1:
                if (!bytes.skip(8)) return true;
                break;
            case 5:
                if (!bytes.skip(4)) return true;
                break;
            case 2: {
                const auto inside = child(message, tag >> 3);
                if (!bytes.number(size)) return true;
                const auto *begin = bytes.at;
                if (!bytes.skip(size) || inside == Message::external) return true;
                if (inside != Message::other &&
                    external_or_odd(inside, {begin, bytes.at}, depth + 1))
                    return true;
                break;
            }
            default: return true;
        }
    }
    return false;
}

}  // namespace

bool has_external_data(const std::string &model) {
    const auto *begin = reinterpret_cast<const std::uint8_t *>(model.data());
    return external_or_odd(Message::model, {begin, begin + model.size()}, 0);
}

}  // namespace regcache
