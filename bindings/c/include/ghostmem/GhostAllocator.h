/// \file
/// Ghost memory for containers: a standard allocator, and a memory resource for
/// those of std::pmr. Both use the default heap, see GhostMemoryManager.h.
///
///     std::vector<int, GhostAllocator<int>> numbers;
///     std::pmr::vector<int> more(GhostMem::MemoryResource());

#pragma once

#include "GhostMemoryManager.h"

#include <cstdlib>
#include <limits>
#include <memory>
#include <type_traits>

#if defined(__has_include)
#if __has_include(<memory_resource>)
#include <memory_resource>
#endif
#endif

namespace GhostMem {
namespace detail {

/// Throws std::bad_alloc, or ends the program where there are no exceptions.
[[noreturn]] inline void OutOfMemory() {
#if defined(__cpp_exceptions)
    throw std::bad_alloc();
#else
    std::fprintf(stderr, "ghostmem: %s\n", ghostmem_last_error());
    std::abort();
#endif
}

/// Memory with unspecified contents.
inline void* Allocate(std::size_t bytes, std::size_t align) {
    void* block = ghostmem_allocate_aligned(GhostMemoryManager::Heap(), align, bytes);
    if (block == nullptr) {
        GhostMemoryManager::Instance().Report("allocate");
        OutOfMemory();
    }
    return block;
}

}  // namespace detail
}  // namespace GhostMem

/// A standard allocator on the default heap. It has no state: all of them are
/// equal, and what one allocated any other may free.
template <typename T>
class GhostAllocator {
public:
    using value_type = T;
    using size_type = std::size_t;
    using difference_type = std::ptrdiff_t;
    using propagate_on_container_move_assignment = std::true_type;
    using is_always_equal = std::true_type;

    constexpr GhostAllocator() noexcept = default;
    constexpr GhostAllocator(const GhostAllocator&) noexcept = default;
    constexpr GhostAllocator& operator=(const GhostAllocator&) noexcept = default;

    template <typename U>
    constexpr GhostAllocator(const GhostAllocator<U>&) noexcept {}

    /// Room for `n` objects, aligned for them. Throws std::bad_alloc, or
    /// std::bad_array_new_length (which is one) when their size overflows.
    [[nodiscard]] T* allocate(size_type n) {
        if (n > static_cast<size_type>(std::numeric_limits<difference_type>::max()) / sizeof(T)) {
#if defined(__cpp_exceptions)
            throw std::bad_array_new_length();
#else
            GhostMem::detail::OutOfMemory();
#endif
        }
        return static_cast<T*>(GhostMem::detail::Allocate(n * sizeof(T), alignof(T)));
    }

    /// Gives back what allocate gave.
    void deallocate(T* objects, size_type) noexcept {
        GhostMemoryManager::Instance().DeallocateGhost(objects);
    }
};

template <typename T, typename U>
constexpr bool operator==(const GhostAllocator<T>&, const GhostAllocator<U>&) noexcept {
    return true;
}

template <typename T, typename U>
constexpr bool operator!=(const GhostAllocator<T>&, const GhostAllocator<U>&) noexcept {
    return false;
}

#if defined(__cpp_lib_memory_resource)

namespace GhostMem {
namespace detail {

class Resource final : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t align) override {
        return Allocate(bytes, align);
    }

    void do_deallocate(void* block, std::size_t, std::size_t) override {
        GhostMemoryManager::Instance().DeallocateGhost(block);
    }

    bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

}  // namespace detail

/// The default heap as a memory resource. Lives as long as the process.
inline std::pmr::memory_resource* MemoryResource() noexcept {
    // Never destroyed: global containers free their memory after main.
    alignas(detail::Resource) static unsigned char place[sizeof(detail::Resource)];
    static std::pmr::memory_resource* const resource = ::new (place) detail::Resource;
    return resource;
}

}  // namespace GhostMem

#endif
