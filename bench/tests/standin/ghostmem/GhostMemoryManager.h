// A STAND-IN, for tests of `ghostmem bench --peer`. Not the original library:
// written from its document on thread safety alone, which names the classes,
// the lock, the containers and the way a fault is handled, and leaves open
// everything else. Figures taken with it say what this design costs, not what
// that library does.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <signal.h>

constexpr std::size_t PAGE_SIZE = 4096;
constexpr std::size_t MAX_PHYSICAL_PAGES = 5;

struct GhostConfig {
    std::size_t max_memory_pages = MAX_PHYSICAL_PAGES;
};

class GhostMemoryManager {
public:
    static GhostMemoryManager& Instance();

    bool Initialize(const GhostConfig& config);
    void* AllocateGhost(std::size_t size);
    void DeallocateGhost(void* block, std::size_t size);

private:
    GhostMemoryManager();

    static void SignalHandler(int signal, siginfo_t* info, void* context);
    void InstallSignalHandler();
    void EvictLRUPage();
    void RestorePage(char* page);
    void Forget(char* page);

    std::recursive_mutex mutex_;
    std::size_t limit_ = MAX_PHYSICAL_PAGES;
    // Blocks by address, with their sizes rounded up to pages.
    std::map<char*, std::size_t> managed_blocks;
    // Pages in memory, the one used last in front.
    std::list<char*> active_pages;
    std::unordered_map<char*, std::list<char*>::iterator> positions_;
    // Compressed pages.
    std::unordered_map<char*, std::vector<char>> backing_store;
    struct sigaction previous_ {};
};
