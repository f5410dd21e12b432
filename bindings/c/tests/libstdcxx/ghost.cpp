// Linked with every test of libstdc++'s suite: eviction at every allocation, the
// figures at the end, and a heap for what libstdc++.so frees.

#include "ghost.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace {

std::atomic<unsigned long> calls{0};

// Its constructor is the first thing to use the heap, its destructor adds a
// line to the file that $GHOSTMEM_TEST_FIGURES names: calls, pages evicted,
// faults on evicted pages.
struct Figures {
    ~Figures() {
        const char* path = std::getenv("GHOSTMEM_TEST_FIGURES");
        FILE* file = path != nullptr ? std::fopen(path, "a") : nullptr;
        if (file == nullptr) {
            return;
        }
        const ghostmem_stats stats = GhostMemoryManager::Instance().Statistics();
        std::fprintf(file, "%lu %llu %llu\n", calls.load(),
                     static_cast<unsigned long long>(stats.evictions_clean + stats.evictions_dirty +
                                                     stats.same_filled_pages),
                     static_cast<unsigned long long>(stats.refaults));
        std::fclose(file);
    }
} figures;

}  // namespace

void ghost_test::squeeze() noexcept {
    // Everything, every time; tests that allocate a great deal would never end,
    // so later calls evict now and then only, and the limit does the rest.
    const unsigned long call = calls.fetch_add(1);
    if (call < 2000 || call % 256 == 0) {
        while (GhostMemoryManager::Instance().EvictLRUPage()) {
        }
    }
}

// libstdc++.so frees with operator delete what its strings and streams were
// given by the program's containers. Weak: some tests bring their own.
#define WEAK __attribute__((weak))

WEAK void* operator new(std::size_t bytes) {
    void* block = std::malloc(bytes != 0 ? bytes : 1);
    if (block == nullptr) {
        throw std::bad_alloc();
    }
    return block;
}

WEAK void operator delete(void* block) noexcept {
    if (GhostMemoryManager::Instance().IsGhost(block)) {
        GhostMemoryManager::Instance().DeallocateGhost(block);
    } else {
        std::free(block);
    }
}

WEAK void operator delete(void* block, std::size_t) noexcept {
    ::operator delete(block);
}
