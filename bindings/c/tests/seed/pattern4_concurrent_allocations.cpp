#include "ghostmem/GhostMemoryManager.h"
#include <thread>
#include <vector>
#include <atomic>

std::atomic<int> success_count{0};

void allocator_thread() {
    for (int i = 0; i < 10; i++) {
        void* ptr = GhostMemoryManager::Instance().AllocateGhost(4096);
        if (ptr != nullptr) {
            // Use the memory
            int* data = static_cast<int*>(ptr);
            data[0] = 42;
            
            if (data[0] == 42) {
                success_count++;
            }
        }
    }
}

int main() {
    const int NUM_THREADS = 8;
    std::vector<std::thread> threads;
    
    for (int i = 0; i < NUM_THREADS; i++) {
        threads.emplace_back(allocator_thread);
    }
    
    for (auto& t : threads) {
        t.join();
    }
    
    std::cout << "Successful allocations: " << success_count << std::endl;
}
