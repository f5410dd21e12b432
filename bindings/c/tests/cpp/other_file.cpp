// A second source file of the same program: the headers define nothing twice.

#include "ghostmem/GhostAllocator.h"
#include "ghostmem/Version.h"

bool other_file_sees_the_same_heap(const void* address);

bool other_file_sees_the_same_heap(const void* address) {
    return GhostMemoryManager::Instance().IsGhost(address);
}
