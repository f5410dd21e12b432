// Included before every test of libstdc++'s suite: see bits/c++allocator.h.

#ifndef GHOSTMEM_TEST_GHOST_H
#define GHOSTMEM_TEST_GHOST_H

#include <ghostmem/GhostAllocator.h>

// Some tests let themselves have 16 MiB of address space. Ghost memory reserves
// more than that before it hands out the first byte.
#undef _GLIBCXX_RES_LIMITS

namespace ghost_test {

// Evicts pages; called whenever a container allocates or frees.
void squeeze() noexcept;

}  // namespace ghost_test

template <typename T>
T* std::GhostBase<T>::allocate(size_t count, const void*) {
    T* objects = GhostAllocator<T>().allocate(count);
    ghost_test::squeeze();
    return objects;
}

template <typename T>
void std::GhostBase<T>::deallocate(T* objects, size_t count) {
    ghost_test::squeeze();
    // Strings that libstdc++.so itself made come from operator new.
    if (GhostMemoryManager::Instance().IsGhost(objects)) {
        GhostAllocator<T>().deallocate(objects, count);
    } else {
        ::operator delete(const_cast<void*>(static_cast<const volatile void*>(objects)));
    }
}

#endif
