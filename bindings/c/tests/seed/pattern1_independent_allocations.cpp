#include "ghostmem/GhostAllocator.h"
#include <thread>
#include <vector>

void worker_thread(int thread_id) {
    // Each thread has its own vector
    std::vector<int, GhostAllocator<int>> local_data;
    
    for (int i = 0; i < 100000; i++) {
        local_data.push_back(thread_id * 100000 + i);
    }
    
    // Process data...
}

int main() {
    std::vector<std::thread> threads;
    
    for (int i = 0; i < 4; i++) {
        threads.emplace_back(worker_thread, i);
    }
    
    for (auto& t : threads) {
        t.join();
    }
}
