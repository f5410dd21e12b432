// On Windows there is no file tier: who asks for one is refused, with a reason,
// and can go on without.
#include <ghostmem/GhostAllocator.h>

#include <cstdio>

int main() {
    GhostConfig config;
    config.max_memory_pages = 64;
    config.use_disk_backing = true;
    if (GhostMemoryManager::Instance().Initialize(config)) {
        std::puts("disk backing was promised");
        return 1;
    }
    config.use_disk_backing = false;
    if (!GhostMemoryManager::Instance().Initialize(config)) {
        std::puts("refused without disk backing too");
        return 1;
    }
    std::puts("refused with disk backing, taken without");
}
