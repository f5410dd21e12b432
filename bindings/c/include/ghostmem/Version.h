/// \file
/// The version of these headers, as numbers for the preprocessor and as
/// functions. `ghostmem_version()` of ghostmem.h is the library's.

#pragma once

#include <string>

#define GHOSTMEM_VERSION_MAJOR 0
#define GHOSTMEM_VERSION_MINOR 1
#define GHOSTMEM_VERSION_PATCH 0
#define GHOSTMEM_VERSION_STRING "0.1.0"

namespace GhostMem {

/// 1 in 1.2.3.
constexpr int GetVersionMajor() noexcept {
    return GHOSTMEM_VERSION_MAJOR;
}

/// 2 in 1.2.3.
constexpr int GetVersionMinor() noexcept {
    return GHOSTMEM_VERSION_MINOR;
}

/// 3 in 1.2.3.
constexpr int GetVersionPatch() noexcept {
    return GHOSTMEM_VERSION_PATCH;
}

/// 10203 for 1.2.3.
constexpr int GetVersion() noexcept {
    return GetVersionMajor() * 10000 + GetVersionMinor() * 100 + GetVersionPatch();
}

/// "1.2.3".
inline std::string GetVersionString() {
    return GHOSTMEM_VERSION_STRING;
}

}  // namespace GhostMem
