// GhostMemoryManager: what each function does, what it refuses and says.

#include "ghostmem/GhostMemoryManager.h"
#include "ghostmem/Version.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <unistd.h>

#include "../check.h"

namespace {

GhostMemoryManager& manager() {
    return GhostMemoryManager::Instance();
}

// What `act` writes to the standard error stream.
template <typename Act>
std::string errors_of(Act act) {
    std::fflush(stderr);
    FILE* file = std::tmpfile();
    CHECK(file != nullptr);
    const int kept = dup(2);
    CHECK(kept >= 0 && dup2(fileno(file), 2) == 2);
    act();
    std::fflush(stderr);
    CHECK(dup2(kept, 2) == 2 && close(kept) == 0);
    std::rewind(file);
    char text[2000] = {};
    const std::size_t length = std::fread(text, 1, sizeof text - 1, file);
    CHECK(std::fclose(file) == 0);
    return std::string(text, length);
}

bool contains(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

void constants_and_defaults_are_the_originals() {
    static_assert(PAGE_SIZE == 4096);
    static_assert(MAX_PHYSICAL_PAGES == 5);
    const GhostConfig config;
    CHECK(!config.use_disk_backing);
    CHECK(config.disk_file_path == "ghostmem.swap");
    CHECK(config.max_memory_pages == 0);
    CHECK(config.compress_before_disk);
    CHECK(!config.enable_verbose_logging);
    CHECK(!config.encrypt_disk_pages);
    static_assert(!std::is_copy_constructible_v<GhostMemoryManager>);
    CHECK(&GhostMemoryManager::Instance() == &GhostMemoryManager::Instance());
}

void what_cannot_be_done_is_refused_with_a_reason() {
    const auto refused = [](const GhostConfig& config, const char* reason) {
        const std::string said = errors_of([&] { CHECK(!manager().Initialize(config)); });
        CHECK(contains(said, reason));
        CHECK(said.find('\n') == said.size() - 1);
    };
    GhostConfig config;
    config.use_disk_backing = true;
    config.disk_file_path = "/nowhere/at/all/ghostmem.swap";
    refused(config, "/nowhere/at/all");
    config = GhostConfig();
    config.encrypt_disk_pages = true;
    refused(config, "set both or neither");
    config = GhostConfig();
    config.max_memory_pages = 4;
    refused(config, "20480");
    config.max_memory_pages = SIZE_MAX / 2;
    refused(config, "more than there is address space");
    config.max_memory_pages = 10;
    config.resident_limit_bytes = 1 << 20;
    refused(config, "both");
    config = GhostConfig();
    config.memory_bytes = 1;
    refused(config, "memory of 1 bytes is too little");
    config.memory_percent = 50;
    refused(config, "memory_percent");
    config = GhostConfig();
    config.slowdown_ppm = 500001;
    refused(config, "0.5 to 50");
}

void a_limit_can_be_set_and_changed() {
    GhostConfig config;
    config.max_memory_pages = 20;
    CHECK(errors_of([&] { CHECK(manager().Initialize(config)); }).empty());
    CHECK(manager().Statistics().resident_limit_bytes == 20 * PAGE_SIZE);
    config.max_memory_pages = 0;
    config.resident_limit_bytes = 30 * PAGE_SIZE;
    CHECK(manager().Initialize(config));
    CHECK(manager().Statistics().resident_limit_bytes == 30 * PAGE_SIZE);
    CHECK(manager().Initialize(GhostConfig()));
    CHECK(manager().Statistics().resident_limit_bytes == MAX_PHYSICAL_PAGES * PAGE_SIZE);
    config = GhostConfig();
    config.readahead = false;
    const std::string said = errors_of([&] { CHECK(!manager().Initialize(config)); });
    CHECK(contains(said, "before the first allocation"));
}

void fresh_memory_is_zero_and_keeps_what_is_written() {
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{1}, std::size_t{100}, PAGE_SIZE, 10 * PAGE_SIZE + 1}) {
        for (int round = 0; round < 3; ++round) {
            auto* bytes = static_cast<unsigned char*>(manager().AllocateGhost(size));
            CHECK(bytes != nullptr);
            CHECK(manager().IsGhost(bytes));
            if (size >= PAGE_SIZE) {
                CHECK(reinterpret_cast<std::uintptr_t>(bytes) % PAGE_SIZE == 0);
            }
            for (std::size_t i = 0; i < size; ++i) {
                CHECK(bytes[i] == 0);
            }
            for (std::size_t i = 0; i < size; ++i) {
                bytes[i] = static_cast<unsigned char>(i * 13 + 1);
            }
            while (manager().EvictLRUPage()) {
            }
            CHECK(manager().Statistics().resident_bytes == 0);
            for (std::size_t i = 0; i < size; ++i) {
                CHECK(bytes[i] == static_cast<unsigned char>(i * 13 + 1));
            }
            round == 1 ? manager().DeallocateGhost(bytes, size) : manager().DeallocateGhost(bytes);
        }
    }
    CHECK(manager().Statistics().allocated_bytes == 0);
}

void pages_go_and_come_on_request() {
    auto* byte = static_cast<volatile char*>(manager().AllocateGhost(PAGE_SIZE));
    *byte = 'x';
    void* address = const_cast<char*>(byte);
    while (manager().EvictLRUPage()) {
    }
    CHECK(!ghostmem_is_resident(GhostMemoryManager::Heap(), address));
    CHECK(manager().RestorePage(address));
    CHECK(ghostmem_is_resident(GhostMemoryManager::Heap(), address));
    CHECK(*byte == 'x');
    int local = 0;
    CHECK(!manager().RestorePage(&local));
    CHECK(!manager().RestorePage(nullptr));
    manager().DeallocateGhost(address);
}

void wrong_frees_are_harmless_and_reported_when_logging_is_on() {
    GhostConfig config;
    for (const bool logging : {false, true}) {
        config.enable_verbose_logging = logging;
        const std::string greeting = errors_of([&] { CHECK(manager().Initialize(config)); });
        CHECK(greeting.empty() != logging);
        for (const std::size_t size : {std::size_t{64}, 20 * PAGE_SIZE}) {
            void* block = manager().AllocateGhost(size);
            auto* kept = static_cast<char*>(manager().AllocateGhost(size));
            std::memset(kept, 'k', size);
            int local = 0;
            CHECK(errors_of([&] { manager().DeallocateGhost(nullptr); }).empty());
            CHECK(errors_of([&] { manager().DeallocateGhost(nullptr, 7); }).empty());
            CHECK(errors_of([&] { manager().DeallocateGhost(block); }).empty());
            const std::string twice = errors_of([&] { manager().DeallocateGhost(block); });
            const std::string foreign = errors_of([&] { manager().DeallocateGhost(&local, 4); });
            const std::string inner = errors_of([&] { manager().DeallocateGhost(kept + 1); });
            for (const std::string& said : {twice, foreign, inner}) {
                CHECK(logging ? contains(said, "DeallocateGhost") : said.empty());
            }
            for (std::size_t i = 0; i < size; ++i) {
                CHECK(kept[i] == 'k');
            }
            manager().DeallocateGhost(kept);
        }
    }
    CHECK(manager().Statistics().allocated_bytes == 0);
}

void no_memory_is_a_null_pointer() {
    for (const std::size_t size : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 2 - PAGE_SIZE}) {
        const std::string said =
            errors_of([&] { CHECK(manager().AllocateGhost(size) == nullptr); });
        CHECK(contains(said, "AllocateGhost: cannot allocate"));
    }
    CHECK(manager().Initialize(GhostConfig()));
}

void pins_hold_pages_for_system_calls() {
    GhostConfig config;
    config.max_memory_pages = 32;
    CHECK(manager().Initialize(config));
    const std::size_t size = 4 * PAGE_SIZE;
    auto* bytes = static_cast<char*>(manager().AllocateGhost(size));
    std::memset(bytes, 'p', size);
    while (manager().EvictLRUPage()) {
    }
    int ends[2];
    CHECK(pipe(ends) == 0);
    if (ghostmem_heap_backend(GhostMemoryManager::Heap()) != GHOSTMEM_BACKEND_MONITOR) {
        CHECK(write(ends[1], bytes, size) == -1 && errno == EFAULT);
    }
    {
        GhostMem::Pinned pinned(bytes, size);
        CHECK(pinned);
        GhostMem::Pinned moved(std::move(pinned));
        CHECK(moved);
        CHECK(!static_cast<bool>(pinned));  // NOLINT: what a moved-from pin promises
        pinned = std::move(moved);
        CHECK(pinned);
        while (manager().EvictLRUPage()) {
        }
        CHECK(write(ends[1], bytes, size) == static_cast<ssize_t>(size));
    }
    char back[4 * PAGE_SIZE];
    CHECK(read(ends[0], back, size) == static_cast<ssize_t>(size));
    CHECK(std::memcmp(back, bytes, size) == 0);
    CHECK(GhostMem::Pinned(back, size));
    CHECK(GhostMem::Pinned(bytes, 0));
    CHECK(!GhostMem::Pinned());
    void* large = manager().AllocateGhost(40 * PAGE_SIZE);
    CHECK(!GhostMem::Pinned(large, 40 * PAGE_SIZE));
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    manager().DeallocateGhost(large);
    // All pins are gone: every page can leave.
    while (manager().EvictLRUPage()) {
    }
    CHECK(manager().Statistics().resident_bytes == 0);
    manager().DeallocateGhost(bytes);
    CHECK(manager().Initialize(GhostConfig()));
}

void the_version_is_one() {
    CHECK(GhostMem::GetVersionString() == ghostmem_version());
    CHECK(GhostMem::GetVersion() == GhostMem::GetVersionMajor() * 10000 +
                                        GhostMem::GetVersionMinor() * 100 +
                                        GhostMem::GetVersionPatch());
    CHECK(GhostMem::GetVersionString() == std::to_string(GhostMem::GetVersionMajor()) + "." +
                                              std::to_string(GhostMem::GetVersionMinor()) + "." +
                                              std::to_string(GhostMem::GetVersionPatch()));
    static_assert(GhostMem::GetVersion() == GHOSTMEM_VERSION_MAJOR * 10000 +
                                                GHOSTMEM_VERSION_MINOR * 100 +
                                                GHOSTMEM_VERSION_PATCH);
}

}  // namespace

int main() {
    constants_and_defaults_are_the_originals();
    what_cannot_be_done_is_refused_with_a_reason();
    a_limit_can_be_set_and_changed();
    fresh_memory_is_zero_and_keeps_what_is_written();
    pages_go_and_come_on_request();
    wrong_frees_are_harmless_and_reported_when_logging_is_on();
    no_memory_is_a_null_pointer();
    pins_hold_pages_for_system_calls();
    the_version_is_one();
    std::puts("GhostMemoryManager: all right");
}
