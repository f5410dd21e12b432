// std::pmr containers on ghost memory, and a buffer that a system call writes
// to.
//
//     c++ -std=c++17 memory_resource.cpp $(pkg-config --cflags --libs ghostmem)

#include <ghostmem/GhostAllocator.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory_resource>
#include <string>
#include <vector>

int main(int argc, char** argv) {
    if (argc != 2) {
        std::cerr << "usage: " << argv[0] << " FILE\n";
        return 2;
    }
    GhostConfig config;
    config.max_memory_pages = 1024;
    if (!GhostMemoryManager::Instance().Initialize(config)) {
        return EXIT_FAILURE;
    }

    std::pmr::vector<std::pmr::string> lines(GhostMem::MemoryResource());
    std::ifstream file(argv[1], std::ios::binary);
    std::pmr::vector<char> piece(1 << 20, GhostMem::MemoryResource());
    std::pmr::string line(GhostMem::MemoryResource());
    while (file) {
        // The stream may hand the buffer to read(2): it must be resident then.
        GhostMem::Pinned pinned(piece.data(), piece.size());
        if (!pinned) {
            std::cerr << ghostmem_last_error() << "\n";
            return EXIT_FAILURE;
        }
        file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
        for (std::streamsize i = 0; i < file.gcount(); ++i) {
            const char character = piece[static_cast<std::size_t>(i)];
            if (character == '\n') {
                lines.push_back(line);
                line.clear();
            } else {
                line.push_back(character);
            }
        }
    }
    if (!line.empty()) {
        lines.push_back(line);
    }

    std::size_t longest = 0;
    for (const std::pmr::string& text : lines) {
        longest = text.size() > longest ? text.size() : longest;
    }
    std::cout << lines.size() << " lines, the longest of " << longest << " characters\n";
}
