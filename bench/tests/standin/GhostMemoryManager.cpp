// See the header: a stand-in for tests, not the original library.
//
// One recursive mutex over everything, taken in the SIGSEGV handler too; pages
// closed and opened by mprotect(2) one at a time; LZ4; least recently restored
// first out. Compiled with -DSTANDIN_CORRUPTS it loses one byte in each page it
// brings back, to show that the bench notices; with -DSTANDIN_DIES it ends its
// process, as a library does that runs out of mappings.
#include "ghostmem/GhostMemoryManager.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

// Of liblz4.so.1, which every Debian has; its header is in a package of its own.
extern "C" {
int LZ4_compressBound(int size);
int LZ4_compress_default(const char* from, char* to, int size, int room);
int LZ4_decompress_safe(const char* from, char* to, int size, int room);
}

namespace {
std::size_t RoundUp(std::size_t size) { return (size + PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE; }

[[noreturn]] void Give(const char* what) {
    std::perror(what);
    std::abort();
}
}  // namespace

GhostMemoryManager& GhostMemoryManager::Instance() {
    // Never destroyed: blocks may be freed after main.
    static GhostMemoryManager* manager = new GhostMemoryManager;
    return *manager;
}

GhostMemoryManager::GhostMemoryManager() { InstallSignalHandler(); }

bool GhostMemoryManager::Initialize(const GhostConfig& config) {
    std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (config.max_memory_pages == 0) return false;
    limit_ = config.max_memory_pages;
    return true;
}

void* GhostMemoryManager::AllocateGhost(std::size_t size) {
    std::lock_guard<std::recursive_mutex> lock(mutex_);
    std::size_t rounded = RoundUp(size);
    void* block = mmap(nullptr, rounded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) return nullptr;
    managed_blocks[static_cast<char*>(block)] = rounded;
    return block;
}

void GhostMemoryManager::Forget(char* page) {
    auto position = positions_.find(page);
    if (position != positions_.end()) {
        active_pages.erase(position->second);
        positions_.erase(position);
    }
    backing_store.erase(page);
}

void GhostMemoryManager::DeallocateGhost(void* block, std::size_t) {
    std::lock_guard<std::recursive_mutex> lock(mutex_);
    auto found = managed_blocks.find(static_cast<char*>(block));
    if (found == managed_blocks.end()) return;
    for (std::size_t at = 0; at < found->second; at += PAGE_SIZE) Forget(found->first + at);
    munmap(block, found->second);
    managed_blocks.erase(found);
}

void GhostMemoryManager::InstallSignalHandler() {
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = SignalHandler;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    sigaction(SIGSEGV, &action, &previous_);
}

void GhostMemoryManager::SignalHandler(int, siginfo_t* info, void*) {
    GhostMemoryManager& manager = Instance();
    std::lock_guard<std::recursive_mutex> lock(manager.mutex_);
    char* address = static_cast<char*>(info->si_addr);
    char* page = address - reinterpret_cast<std::uintptr_t>(address) % PAGE_SIZE;
    for (const auto& [block, size] : manager.managed_blocks) {
        if (address >= block && address < block + size) {
            // Another thread may have been faster.
            if (manager.positions_.count(page) == 0) manager.RestorePage(page);
            return;
        }
    }
    // Not ours: the next try goes to whoever was there before.
    sigaction(SIGSEGV, &manager.previous_, nullptr);
}

void GhostMemoryManager::EvictLRUPage() {
    char* page = active_pages.back();
    active_pages.pop_back();
    positions_.erase(page);
    // Other threads must not write while it is compressed.
    if (mprotect(page, PAGE_SIZE, PROT_READ) != 0) Give("stand-in: mprotect");
    std::vector<char> packed(LZ4_compressBound(PAGE_SIZE));
    int length = LZ4_compress_default(page, packed.data(), PAGE_SIZE, static_cast<int>(packed.size()));
    packed.resize(length);
    packed.shrink_to_fit();
    backing_store[page] = std::move(packed);
    if (mprotect(page, PAGE_SIZE, PROT_NONE) != 0) Give("stand-in: mprotect");
    madvise(page, PAGE_SIZE, MADV_DONTNEED);
}

void GhostMemoryManager::RestorePage(char* page) {
    while (active_pages.size() >= limit_) EvictLRUPage();
    // Open before it is filled: another thread can see it half done.
    if (mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE) != 0) Give("stand-in: mprotect");
#ifdef STANDIN_DIES
    std::abort();
#endif
    auto stored = backing_store.find(page);
    if (stored != backing_store.end()) {
        LZ4_decompress_safe(stored->second.data(), page, static_cast<int>(stored->second.size()), PAGE_SIZE);
        backing_store.erase(stored);
#ifdef STANDIN_CORRUPTS
        page[PAGE_SIZE - 1] ^= 1;
#endif
    }
    active_pages.push_front(page);
    positions_[page] = active_pages.begin();
}
