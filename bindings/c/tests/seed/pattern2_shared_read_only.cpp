#include "ghostmem/GhostAllocator.h"
#include <thread>
#include <vector>

void reader_thread(const std::vector<int, GhostAllocator<int>>& shared_data) {
    // Multiple threads reading same data - safe
    int sum = 0;
    for (size_t i = 0; i < shared_data.size(); i++) {
        sum += shared_data[i];
    }
    std::cout << "Sum: " << sum << std::endl;
}

int main() {
    // Prepare shared data
    std::vector<int, GhostAllocator<int>> shared_data;
    for (int i = 0; i < 1000000; i++) {
        shared_data.push_back(i);
    }
    
    // Multiple readers
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back(reader_thread, std::cref(shared_data));
    }
    
    for (auto& t : threads) {
        t.join();
    }
}
