#include "ghostmem/GhostAllocator.h"
#include <thread>
#include <vector>
#include <mutex>
#include <condition_variable>

std::vector<int, GhostAllocator<int>> shared_queue;
std::mutex queue_mutex;
std::condition_variable cv;
bool done = false;

void producer() {
    for (int i = 0; i < 1000; i++) {
        {
            std::lock_guard<std::mutex> lock(queue_mutex);
            shared_queue.push_back(i);
        }
        cv.notify_one();
    }
    
    {
        std::lock_guard<std::mutex> lock(queue_mutex);
        done = true;
    }
    cv.notify_all();
}

void consumer(int id) {
    while (true) {
        std::unique_lock<std::mutex> lock(queue_mutex);
        cv.wait(lock, [] { return !shared_queue.empty() || done; });
        
        if (shared_queue.empty() && done) break;
        
        if (!shared_queue.empty()) {
            int value = shared_queue.back();
            shared_queue.pop_back();
            lock.unlock();
            
            // Process value...
            std::cout << "Consumer " << id << " got: " << value << std::endl;
        }
    }
}

int main() {
    std::thread prod(producer);
    std::thread cons1(consumer, 1);
    std::thread cons2(consumer, 2);
    
    prod.join();
    cons1.join();
    cons2.join();
}
