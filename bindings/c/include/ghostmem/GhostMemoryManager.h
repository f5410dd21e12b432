/// \file
/// The process's default ghost heap, for C++17 and later.
///
/// Ghost memory is used like any other memory. At most a limit of it is mapped
/// at any moment; the rest is compressed inside the process and comes back at
/// the next touch. Everything here may be called from any thread.
///
/// **System calls.** With every backend but *monitor* the kernel cannot read or
/// write a ghost page that is not resident: read(2) into a ghost vector, or
/// printing a long ghost string with std::cout (which hands its bytes to
/// write(2) directly), can fail with EFAULT. Hold such ranges with
/// `GhostMem::Pinned`, or copy them through ordinary memory.

#pragma once

#if !defined(__cplusplus) || __cplusplus < 201703L
#error "ghostmem needs C++17: compile with -std=c++17 or later"
#endif

// Programs written for this interface rely on <cassert>, <functional> and
// <iostream> being here.
#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <new>
#include <string>
#include <utility>

#include "../ghostmem.h"

// Some system headers (sys/user.h, limits.h of musl) define PAGE_SIZE as a
// macro, and a macro would eat the name of a constant. Where it is one already,
// it is kept, and must agree. A program with a PAGE_SIZE of its own defines
// GHOSTMEM_NO_PAGE_SIZE; GHOSTMEM_PAGE_SIZE is always there.
#if defined(PAGE_SIZE)
static_assert((PAGE_SIZE) == GHOSTMEM_PAGE_SIZE,
              "PAGE_SIZE is a macro that is not 4096, GhostMem's page: undefine it before "
              "this include");
#elif !defined(GHOSTMEM_NO_PAGE_SIZE)
/// Bytes of a page, the unit of residence.
inline constexpr std::size_t PAGE_SIZE = GHOSTMEM_PAGE_SIZE;
#endif

// The default limit is chosen once for a program: give every source file the
// same macro (-DGHOSTMEM_MAX_PHYSICAL_PAGES=1000).
#if defined(MAX_PHYSICAL_PAGES)
static_assert((MAX_PHYSICAL_PAGES) >= 5, "GhostMem needs at least 5 resident pages");
#else
#if !defined(GHOSTMEM_MAX_PHYSICAL_PAGES)
#define GHOSTMEM_MAX_PHYSICAL_PAGES 5
#endif
static_assert((GHOSTMEM_MAX_PHYSICAL_PAGES) >= 5, "GhostMem needs at least 5 resident pages");
/// Pages resident at most when neither the configuration nor the environment
/// names a limit.
inline constexpr std::size_t MAX_PHYSICAL_PAGES = GHOSTMEM_MAX_PHYSICAL_PAGES;
#endif

namespace GhostMem {

/// How a heap learns of touches.
enum class Backend : std::uint32_t {
    /// The best this machine allows: inline, else guard.
    Auto = GHOSTMEM_BACKEND_AUTO,
    /// userfaultfd, faults resolved on the faulting thread.
    Inline = GHOSTMEM_BACKEND_INLINE,
    /// userfaultfd, faults resolved by engine threads: system calls see ghost
    /// memory, with a privileged userfaultfd.
    Monitor = GHOSTMEM_BACKEND_MONITOR,
    /// Guard pages on a memory file, where userfaultfd is refused.
    Guard = GHOSTMEM_BACKEND_GUARD,
    /// As Guard, by mprotect(2) alone.
    GuardMprotect = GHOSTMEM_BACKEND_GUARD_MPROTECT,
};

/// How pages are compressed.
enum class Codec : std::uint32_t {
    /// The engine's choice.
    Auto = GHOSTMEM_CODEC_AUTO,
    /// LZ4, fastest setting.
    Lz4 = GHOSTMEM_CODEC_LZ4,
};

}  // namespace GhostMem

/// Settings of the default heap, for GhostMemoryManager::Initialize.
struct GhostConfig {
    /// Move cold compressed pages to a file when memory has its share of them.
    bool use_disk_backing = false;
    /// That file's name. It is locked against others and removed when the
    /// process ends by exit; one that a killed process left is taken over, any
    /// other file of that name is refused. Empty: a nameless file in
    /// disk_folder, of which nothing is left however the process ends.
    std::string disk_file_path = "ghostmem.swap";
    /// Pages resident at most; 0, without any other limit here: the environment
    /// (GHOSTMEM_MEMORY, GHOSTMEM_LIMIT, GHOSTMEM_MAX_PHYSICAL_PAGES), else
    /// MAX_PHYSICAL_PAGES.
    std::size_t max_memory_pages = 0;
    /// Compress pages before they go to that file. Off, with disk backing:
    /// evicted pages are not compressed at all.
    bool compress_before_disk = true;
    /// Report what is refused (double frees, foreign pointers, failed
    /// allocations) and what was set up on the standard error stream.
    bool enable_verbose_logging = false;
    /// Encrypt pages in that file, with a key that is in memory only. A
    /// checksum is kept in either case.
    bool encrypt_disk_pages = false;

    /// The resident limit in bytes; 0: max_memory_pages says it.
    std::size_t resident_limit_bytes = 0;
    /// The most that the process takes of the machine: uncompressed and
    /// compressed pages, tables, and memory that is not ghost. How many pages
    /// are resident follows from it. SIZE_MAX: what control groups, limits of
    /// the process and the machine leave it; 0: no bound.
    std::size_t memory_bytes = 0;
    /// In place of memory_bytes: hundredths, 1 to 100, of the smallest of those
    /// limits; 0: none.
    std::uint32_t memory_percent = 0;
    /// How touches are noticed; Auto: GHOSTMEM_BACKEND of the environment
    /// (inline, monitor, guard, guard-mprotect), else the best there is.
    GhostMem::Backend backend = GhostMem::Backend::Auto;
    /// How pages are compressed.
    GhostMem::Codec codec = GhostMem::Codec::Auto;
    /// Restore pages ahead of sequential and strided runs.
    bool readahead = true;
    /// Keep frames free ahead of demand with a thread of the engine.
    bool background = true;
    /// Keep the compressed copy of a page that was restored for reading.
    bool keep_copies = true;
    /// Where the file is when disk_file_path is empty.
    std::string disk_folder = "/var/tmp";
    /// Most bytes of the file; 0: what the disk allows.
    std::uint64_t disk_limit_bytes = 0;
    /// Bytes of compressed pages that stay in memory before the coldest go to
    /// the file; 0: none. SIZE_MAX: what memory_bytes leaves beside
    /// resident pages, or as many as may be resident where there is none.
    std::size_t disk_store_bytes = SIZE_MAX;
    /// As little memory stays uncompressed as the program bears: faults may
    /// take this share of its own time and theirs together, in millionths
    /// (50000 is 5 %), 5000 to 500000. 0: GHOSTMEM_SLOWDOWN of the environment
    /// (5%), else none.
    std::uint32_t slowdown_ppm = 0;
};

/// The default heap: one for the process, made at the first use, there until
/// the process ends.
class GhostMemoryManager {
public:
    /// The only one. Usable before main and after it.
    static GhostMemoryManager& Instance() noexcept {
        // Nothing to destroy: global containers free their memory after main.
        static GhostMemoryManager instance;
        return instance;
    }

    GhostMemoryManager(const GhostMemoryManager&) = delete;
    GhostMemoryManager& operator=(const GhostMemoryManager&) = delete;

    /// Sets the heap up. Once it is in use only its resident limit can change.
    /// False, with one line on the standard error stream, when it cannot do
    /// what was asked; the heap is as it was then.
    bool Initialize(const GhostConfig& config) {
        if (config.encrypt_disk_pages && !config.use_disk_backing) {
            return Refuse("Initialize: encrypt_disk_pages is set without use_disk_backing: there "
                          "is no file to encrypt, set both or neither");
        }
        if (config.max_memory_pages != 0 && config.resident_limit_bytes != 0) {
            return Refuse("Initialize: both max_memory_pages and resident_limit_bytes are set: "
                          "leave one of them 0");
        }
        if (config.max_memory_pages > SIZE_MAX / GHOSTMEM_PAGE_SIZE) {
            return Refuse("Initialize: max_memory_pages is more than there is address space");
        }
        ghostmem_config settings;
        ghostmem_config_init(&settings, sizeof settings);
        settings.resident_limit_bytes = config.max_memory_pages != 0
                                            ? config.max_memory_pages * GHOSTMEM_PAGE_SIZE
                                            : config.resident_limit_bytes;
        settings.memory_bytes = config.memory_bytes;
        settings.memory_percent = config.memory_percent;
        settings.backend = static_cast<std::uint32_t>(config.backend);
        settings.codec = static_cast<std::uint32_t>(config.codec);
        settings.readahead = config.readahead ? 1 : 0;
        settings.background = config.background ? 1 : 0;
        settings.keep_copies = config.keep_copies ? 1 : 0;
        settings.slowdown_ppm = config.slowdown_ppm;
        if (config.use_disk_backing) {
            const bool named = !config.disk_file_path.empty();
            settings.spill_file = named ? config.disk_file_path.c_str() : nullptr;
            settings.spill_dir = named ? nullptr : config.disk_folder.c_str();
            settings.spill_limit_bytes = config.disk_limit_bytes;
            settings.spill_store_bytes = config.disk_store_bytes;
            settings.spill_encrypt = config.encrypt_disk_pages ? 1 : 0;
            settings.spill_compress = config.compress_before_disk ? 1 : 0;
        }
        if (ghostmem_default_heap_configure(&settings, MAX_PHYSICAL_PAGES) != GHOSTMEM_STATUS_OK) {
            std::fprintf(stderr, "ghostmem: Initialize: %s\n", ghostmem_last_error());
            return false;
        }
        verbose_.store(config.enable_verbose_logging, std::memory_order_relaxed);
        if (config.enable_verbose_logging) {
            const ghostmem_stats stats = Statistics();
            std::fprintf(stderr, "ghostmem: at most %zu pages of %d bytes resident\n",
                         static_cast<std::size_t>(stats.resident_limit_bytes) / GHOSTMEM_PAGE_SIZE,
                         GHOSTMEM_PAGE_SIZE);
        }
        return true;
    }

    /// Memory of `size` bytes, all zero; from a page on aligned to pages, below
    /// to 16. A size of 0 counts as 1. nullptr when there is none.
    void* AllocateGhost(std::size_t size) noexcept {
        const std::size_t align = size >= GHOSTMEM_PAGE_SIZE ? GHOSTMEM_PAGE_SIZE : 1;
        void* block = ghostmem_allocate_zeroed_aligned(Heap(), align, size);
        if (block == nullptr) {
            Report("AllocateGhost");
        }
        return block;
    }

    /// Frees a block. nullptr is ignored; a block freed twice, the middle of a
    /// block and a pointer from elsewhere change nothing and are reported when
    /// logging is on.
    void DeallocateGhost(void* block) noexcept {
        if (block != nullptr && ghostmem_deallocate(Heap(), block) != GHOSTMEM_STATUS_OK) {
            Report("DeallocateGhost");
        }
    }

    /// The same; the heap knows the size itself.
    void DeallocateGhost(void* block, std::size_t) noexcept {
        DeallocateGhost(block);
    }

    /// Evicts the page that reclaim would take next; false when none can leave.
    bool EvictLRUPage() noexcept {
        std::size_t pages = 0;
        if (ghostmem_evict_coldest(Heap(), &pages) != GHOSTMEM_STATUS_OK) {
            Report("EvictLRUPage");
        }
        return pages != 0;
    }

    /// Brings the page at an address in before it is touched; false when the
    /// address is not ghost memory.
    bool RestorePage(void* address) noexcept {
        if (ghostmem_prefetch(Heap(), address, 1, nullptr) != GHOSTMEM_STATUS_OK) {
            Report("RestorePage");
            return false;
        }
        return true;
    }

    /// Whether an address lies in the default heap.
    bool IsGhost(const void* address) const noexcept {
        return ghostmem_is_ghost(Heap(), address);
    }

    /// What the heap holds and did; all zero when it cannot be made.
    ghostmem_stats Statistics() const noexcept {
        ghostmem_stats stats = {};
        ghostmem_heap_stats(Heap(), &stats, sizeof stats);
        return stats;
    }

    /// The heap, for the functions of ghostmem.h; nullptr when it cannot be
    /// made.
    static ghostmem_heap* Heap() noexcept {
        return ghostmem_default_heap(MAX_PHYSICAL_PAGES);
    }

    /// Says why the last call was refused, if logging is on.
    void Report(const char* call) const noexcept {
        if (verbose_.load(std::memory_order_relaxed)) {
            std::fprintf(stderr, "ghostmem: %s: %s\n", call, ghostmem_last_error());
        }
    }

private:
    constexpr GhostMemoryManager() noexcept = default;

    static bool Refuse(const char* why) noexcept {
        std::fprintf(stderr, "ghostmem: %s\n", why);
        return false;
    }

    std::atomic<bool> verbose_{false};
};

namespace GhostMem {

/// Keeps a range of ghost memory resident while it lives: for read(2), write(2)
/// and other system calls, direct and asynchronous I/O.
///
///     GhostMem::Pinned pinned(buffer.data(), buffer.size());
///     if (pinned) { read(file, buffer.data(), buffer.size()); }
///
/// Memory outside the default heap needs no pin: for such a range it does
/// nothing and is true, so that code need not know where its buffers are.
class Pinned {
public:
    /// Holds nothing.
    constexpr Pinned() noexcept = default;

    /// Brings the range in and holds it. False afterwards when that was
    /// refused: all but 5 pages of the limit can be pinned
    /// (ghostmem_last_error()).
    Pinned(const void* start, std::size_t bytes) noexcept {
        ghostmem_heap* heap = GhostMemoryManager::Heap();
        if (bytes == 0 || !ghostmem_is_ghost(heap, start)) {
            held_ = true;
        } else {
            held_ = ghostmem_pin(heap, start, bytes, &pinned_) == GHOSTMEM_STATUS_OK;
        }
    }

    Pinned(Pinned&& other) noexcept
        : pinned_(std::exchange(other.pinned_, nullptr)),
          held_(std::exchange(other.held_, false)) {}

    Pinned& operator=(Pinned&& other) noexcept {
        if (this != &other) {
            Reset();
            pinned_ = std::exchange(other.pinned_, nullptr);
            held_ = std::exchange(other.held_, false);
        }
        return *this;
    }

    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;

    ~Pinned() {
        Reset();
    }

    /// Whether the range is held.
    explicit operator bool() const noexcept {
        return held_;
    }

    /// Lets the range go.
    void Reset() noexcept {
        ghostmem_unpin(std::exchange(pinned_, nullptr));
        held_ = false;
    }

private:
    ghostmem_pinned* pinned_ = nullptr;
    bool held_ = false;
};

}  // namespace GhostMem
