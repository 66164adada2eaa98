// The one exception type inside the library; regcache.cpp turns it into a status at the boundary.
#pragma once

#include <stdexcept>
#include <string>

#include "regcache.h"

namespace regcache {

class Error : public std::runtime_error {
public:
    Error(regcache_status code, const std::string &message)
        : std::runtime_error(message), status(code) {}

    const regcache_status status;
};

inline const char *const kAgain = "export it again, or copy the whole folder again";

}  // namespace regcache
