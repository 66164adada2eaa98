#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace regcache {

constexpr std::size_t kMaxNesting = 100;  // as documents.py has it

// Refuses what two readers could take in two ways: a key twice in one object, -0 (whole to some),
// and more brackets in each other than Python's reader would follow.
class StrictJson {
public:
    struct Refused {};

    bool operator()(int, nlohmann::json::parse_event_t event, const nlohmann::json &value) {
        using Event = nlohmann::json::parse_event_t;
        switch (event) {
            case Event::object_start:
            case Event::array_start:
                if (open_.size() == kMaxNesting) throw Refused();
                open_.emplace_back();
                break;
            case Event::object_end:
            case Event::array_end: open_.pop_back(); break;
            case Event::key:
                if (!open_.back().insert(value.get<std::string>()).second) throw Refused();
                break;
            case Event::value:
                // of integers, only the lexer's "-0" is a signed 0
                if (value.is_number_integer() && !value.is_number_unsigned() && value == 0)
                    throw Refused();
        }
        return true;
    }

private:
    std::vector<std::set<std::string>> open_;  // keys of the objects around; none of a list
};

// JSON from outside; discarded where it is none. `strict_json` of documents.py refuses the same.
inline nlohmann::json parse_json(const std::string &text) {
    using Json = nlohmann::json;
    // nlohmann takes a zero byte for the end, and would not look at what follows; and a byte order
    // mark for nothing
    if (text.find('\0') != std::string::npos || text.compare(0, 3, "\xef\xbb\xbf") == 0)
        return Json(Json::value_t::discarded);
    StrictJson strict;
    const auto callback = [&](int depth, Json::parse_event_t event, Json &value) {
        return strict(depth, event, value);
    };
    try {
        return Json::parse(text, callback, false);
    } catch (const StrictJson::Refused &) {
        return Json(Json::value_t::discarded);
    }
}

// The same of a whole file, which may begin with a byte order mark.
inline nlohmann::json parse_document(const std::string &text) {
    return parse_json(text.compare(0, 3, "\xef\xbb\xbf") == 0 ? text.substr(3) : text);
}

// Whether it is a whole number from `low` to `high`. nlohmann's own comparison takes 2^64 - 1 for -1.
inline bool is_whole(const nlohmann::json &value, std::int64_t low, std::int64_t high) {
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t(INT64_MAX))
        return false;
    return value.is_number_integer() && value.get<std::int64_t>() >= low &&
           value.get<std::int64_t>() <= high;
}

}  // namespace regcache
