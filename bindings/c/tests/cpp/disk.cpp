// GhostConfig's disk backing, with the original's names: cold pages go to the
// file, come back, and the file is gone when the process has ended.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include <ghostmem/GhostAllocator.h>
#include <ghostmem/GhostMemoryManager.h>

#include "../check.h"

namespace {

std::uint64_t word(std::size_t i) {
    const std::uint64_t mixed = (i + 1) * 0x9E3779B97F4A7C15U;
    return i / 512 % 2 == 0 ? mixed >> 50 : mixed ^ mixed >> 31;
}

// One heap lives in a process: each configuration has one of its own.
void in_a_process(const GhostConfig& config) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        auto& manager = GhostMemoryManager::Instance();
        CHECK(manager.Initialize(config));
        if (!config.disk_file_path.empty()) {
            CHECK(access(config.disk_file_path.c_str(), F_OK) == 0);
        }
        std::vector<std::uint64_t, GhostAllocator<std::uint64_t>> words;
        for (std::size_t i = 0; i < (16U << 20) / 8; ++i) {
            words.push_back(word(i));
        }
        for (std::size_t i = 0; i < words.size(); ++i) {
            CHECK(words[i] == word(i));
        }
        const ghostmem_stats stats = manager.Statistics();
        CHECK(stats.pages_spilled > 500 && stats.spilled_reads > 500);
        if (!config.compress_before_disk) {
            CHECK(stats.file_data_bytes == stats.file_pages * PAGE_SIZE);
        }
        // A forked child does not take the name away.
        const pid_t grandchild = fork();
        CHECK(grandchild >= 0);
        if (grandchild == 0) {
            CHECK(words[12345] == word(12345));
            std::exit(0);
        }
        int status = 0;
        CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0);
        if (!config.disk_file_path.empty()) {
            CHECK(access(config.disk_file_path.c_str(), F_OK) == 0);
        }
        std::exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    if (!config.disk_file_path.empty()) {
        CHECK(access(config.disk_file_path.c_str(), F_OK) != 0);
    }
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 2);
    const std::string folder = argv[1];
    GhostConfig config;
    config.use_disk_backing = true;
    config.max_memory_pages = 256;
    config.disk_file_path = folder + "/ghostmem.swap";
    in_a_process(config);
    config.encrypt_disk_pages = true;
    in_a_process(config);
    config.compress_before_disk = false;
    in_a_process(config);
    config.disk_file_path.clear();
    config.disk_folder = folder;
    config.disk_store_bytes = 0;
    in_a_process(config);
    std::puts("disk backing: all right");
    return 0;
}
