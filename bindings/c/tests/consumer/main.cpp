#include <ghostmem/GhostAllocator.h>
#include <ghostmem/Version.h>

#include <map>
#include <thread>
#include <vector>

int main() {
    std::map<int, std::string, std::less<>, GhostAllocator<std::pair<const int, std::string>>> map;
    for (int i = 0; i < 10000; ++i) {
        map.emplace(i, std::to_string(i));
    }
    bool right = true;
    std::thread reader([&] {
        for (int i = 0; i < 10000; ++i) {
            right = right && map.at(i) == std::to_string(i);
        }
    });
    reader.join();
    if (!right || GhostMemoryManager::Instance().Statistics().refaults == 0) {
        return 1;
    }
    std::cout << "consumer: C++, GhostMem " << GhostMem::GetVersionString() << std::endl;
}
