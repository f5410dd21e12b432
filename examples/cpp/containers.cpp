// Standard containers on ghost memory: a word count and an index whose nodes
// and strings are compressed while they are cold.
//
//     c++ -std=c++17 containers.cpp $(pkg-config --cflags --libs ghostmem)

#include <ghostmem/GhostAllocator.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <unordered_map>
#include <vector>

template <typename T>
using GhostVector = std::vector<T, GhostAllocator<T>>;
using GhostString = std::basic_string<char, std::char_traits<char>, GhostAllocator<char>>;
using Index = std::unordered_map<int, GhostString, std::hash<int>, std::equal_to<int>,
                                 GhostAllocator<std::pair<const int, GhostString>>>;

int main() {
    GhostConfig config;
    config.max_memory_pages = 1024;  // 4 MiB
    if (!GhostMemoryManager::Instance().Initialize(config)) {
        return EXIT_FAILURE;
    }

    Index index;
    for (int i = 0; i < 200000; ++i) {
        GhostString line("record number ");
        line += std::to_string(i).c_str();
        line += ", long enough to lie in a block of its own";
        index.emplace(i, std::move(line));
    }
    GhostVector<std::size_t> lengths;
    for (int i = 0; i < 200000; ++i) {
        lengths.push_back(index.at(i).size());
    }
    std::size_t sum = 0;
    for (const std::size_t length : lengths) {
        sum += length;
    }

    const ghostmem_stats stats = GhostMemoryManager::Instance().Statistics();
    std::cout << index.size() << " records, " << sum << " characters\n"
              << (stats.allocated_bytes >> 20) << " MiB allocated, "
              << (stats.resident_bytes >> 20) << " MiB resident, "
              << (stats.store_held_bytes >> 20) << " MiB in the store\n";
}
