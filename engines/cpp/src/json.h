#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace regcache {

// JSON from outside; discarded where it is none.
inline nlohmann::json parse_json(const std::string &text) {
    using Json = nlohmann::json;
    // nlohmann takes a zero byte for the end, and would not look at what follows
    if (text.find('\0') != std::string::npos) return Json(Json::value_t::discarded);
    return Json::parse(text, nullptr, false);
}

}  // namespace regcache
