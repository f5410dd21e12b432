// What docs/c.md says of streams: a library that hands ghost bytes to the kernel
// without a copy fails on pages that are not resident, loses nothing, and
// succeeds on pinned ones. Argument: a directory to write into.

#include "ghostmem/GhostAllocator.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "../check.h"

namespace {

using String = std::basic_string<char, std::char_traits<char>, GhostAllocator<char>>;

constexpr std::size_t size = 50 * PAGE_SIZE;

void evict_all() {
    while (GhostMemoryManager::Instance().EvictLRUPage()) {
    }
}

String long_text() {
    String text;
    for (std::size_t i = 0; i < size; ++i) {
        text.push_back(static_cast<char>('a' + i % 23));
    }
    return text;
}

void is_long_text(const char* bytes) {
    for (std::size_t i = 0; i < size; ++i) {
        CHECK(bytes[i] == static_cast<char>('a' + i % 23));
    }
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 2);
    GhostConfig config;
    config.max_memory_pages = 100;
    CHECK(GhostMemoryManager::Instance().Initialize(config));
    const bool system_calls_see_it =
        ghostmem_heap_backend(GhostMemoryManager::Heap()) == GHOSTMEM_BACKEND_MONITOR;
    const std::string path = std::string(argv[1]) + "/stream";
    const String text = long_text();

    evict_all();
    {
        std::ofstream file(path, std::ios::binary);
        file.write(text.data(), static_cast<std::streamsize>(size));
        file.flush();
        CHECK(file.good() == system_calls_see_it);
    }
    evict_all();
    FILE* stdio = std::fopen(path.c_str(), "wb");
    CHECK(stdio != nullptr);
    CHECK((std::fwrite(text.data(), 1, size, stdio) == size) == system_calls_see_it);
    CHECK(std::fclose(stdio) == 0);
    is_long_text(text.data());

    evict_all();
    {
        const GhostMem::Pinned pinned(text.data(), text.size());
        CHECK(pinned);
        std::ofstream file(path, std::ios::binary);
        file << text;
        file.flush();
        CHECK(file.good());
    }
    std::vector<char, GhostAllocator<char>> back(size);
    std::ifstream file(path, std::ios::binary);
    evict_all();
    file.read(back.data(), static_cast<std::streamsize>(size));
    CHECK((file.gcount() == static_cast<std::streamsize>(size)) == system_calls_see_it);
    file.clear();
    file.seekg(0);
    {
        const GhostMem::Pinned pinned(back.data(), back.size());
        CHECK(pinned);
        file.read(back.data(), static_cast<std::streamsize>(size));
        CHECK(file.gcount() == static_cast<std::streamsize>(size));
    }
    evict_all();
    is_long_text(back.data());

    // What is copied needs no pin: short strings, and everything read from a
    // stream character by character.
    evict_all();
    std::ofstream small(path, std::ios::binary);
    for (std::size_t i = 0; i + 100 <= size; i += 100) {
        small << text.substr(i, 100);
    }
    small.flush();
    CHECK(small.good());
    std::puts("streams: all right");
}
