// Found before libstdc++'s file of this name, which says what std::allocator is
// made of (libstdc++'s manual: "--enable-libstdcxx-allocator"). Here: of
// GhostAllocator. Every container of a test compiled so lives in ghost memory.
//
// GhostAllocator.h needs headers that need this one, so the two functions are
// defined later, in ghost.h.

#ifndef _GLIBCXX_CXX_ALLOCATOR_H
#define _GLIBCXX_CXX_ALLOCATOR_H 1

#include <bits/new_allocator.h>

namespace std {

template <typename T>
class GhostBase : public __new_allocator<T> {
public:
    constexpr GhostBase() noexcept = default;
    constexpr GhostBase(const GhostBase&) noexcept = default;
    template <typename U>
    constexpr GhostBase(const GhostBase<U>&) noexcept {}

    T* allocate(size_t count, const void* = nullptr);
    void deallocate(T* objects, size_t count);
};

template <typename T>
using __allocator_base = GhostBase<T>;

}  // namespace std

#endif
