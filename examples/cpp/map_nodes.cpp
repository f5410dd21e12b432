// How long a std::map of many nodes takes to build and to read in ghost memory,
// beside std::allocator, and how much memory the process had at most.
//
//     c++ -O2 -std=c++17 map_nodes.cpp $(pkg-config --cflags --libs ghostmem)
//     ./a.out --nodes 10000000 --limit 64
//     ./a.out --nodes 10000000 --plain
//
// --nodes N   nodes (10000000)
// --limit MIB the resident limit (64)
// --plain     std::allocator instead
// --shuffled  insert the keys in a scattered order instead of ascending
//
// Every node is checked, in key order and at 200000 random keys. In ghost
// memory the peak of the process, as the kernel counted it, must stay within
// the limit, the most the store held at any moment, 5 % of both and 16 MiB.

#include <ghostmem/GhostAllocator.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <sys/resource.h>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Short enough to lie in the node itself.
std::string text_of(int key) {
    return "value " + std::to_string(key);
}

// A permutation of 0..nodes-1 that jumps about: multiplication by an odd number
// modulo a power of two, skipping what is too large.
class Keys {
public:
    Keys(int nodes, bool shuffled) : nodes_(static_cast<std::uint32_t>(nodes)), shuffled_(shuffled) {
        while (mask_ < nodes_ - 1) {
            mask_ = mask_ * 2 + 1;
        }
    }

    int next() {
        if (!shuffled_) {
            return static_cast<int>(at_++);
        }
        std::uint32_t key;
        do {
            key = (at_++ * 2654435761U) & mask_;
        } while (key >= nodes_);
        return static_cast<int>(key);
    }

private:
    std::uint32_t nodes_;
    bool shuffled_;
    std::uint32_t mask_ = 1;
    std::uint32_t at_ = 0;
};

void fail(const char* what, int key) {
    std::fprintf(stderr, "wrong: %s at key %d\n", what, key);
    std::exit(EXIT_FAILURE);
}

// The most the store held at any moment, looked at every 2 milliseconds.
class StorePeak {
public:
    StorePeak() : watcher_([this] { watch(); }) {}

    ~StorePeak() {
        stop();
    }

    std::uint64_t stop() {
        if (watcher_.joinable()) {
            stopping_ = true;
            watcher_.join();
        }
        return peak_bytes_;
    }

private:
    void watch() {
        while (!stopping_) {
            ghostmem_stats stats;
            ghostmem_heap_stats(GhostMemoryManager::Heap(), &stats, sizeof stats);
            peak_bytes_ = std::max(peak_bytes_, stats.store_held_bytes);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    }

    std::atomic<bool> stopping_{false};
    std::uint64_t peak_bytes_ = 0;
    std::thread watcher_;
};

template <typename Map>
void work(int nodes, bool shuffled) {
    Map map;
    auto start = Clock::now();
    Keys keys(nodes, shuffled);
    for (int i = 0; i < nodes; ++i) {
        const int key = keys.next();
        if (shuffled) {
            map.emplace(key, text_of(key));
        } else {
            map.emplace_hint(map.end(), key, text_of(key));
        }
    }
    std::printf("build %.2f s\n", seconds_since(start));

    start = Clock::now();
    int expected = 0;
    for (const auto& [key, text] : map) {
        if (key != expected || text != text_of(key)) {
            fail("walking the map", expected);
        }
        ++expected;
    }
    if (expected != nodes || map.size() != static_cast<std::size_t>(nodes)) {
        fail("number of nodes", expected);
    }
    std::printf("walk %.2f s\n", seconds_since(start));

    start = Clock::now();
    constexpr int lookups = 200000;
    std::mt19937 random(1);
    for (int i = 0; i < lookups; ++i) {
        const int key = static_cast<int>(random() % static_cast<std::uint32_t>(nodes));
        const auto found = map.find(key);
        if (found == map.end() || found->second != text_of(key)) {
            fail("looking up", key);
        }
    }
    std::printf("look up %.2f us each\n", seconds_since(start) * 1e6 / lookups);
    std::printf("%d nodes are right\n", nodes);

    start = Clock::now();
    map.clear();
    std::printf("clear %.2f s\n", seconds_since(start));
}

std::uint64_t peak_bytes() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace

int main(int argc, char** argv) {
    int nodes = 10000000;
    std::uint64_t limit_bytes = std::uint64_t{64} << 20;
    bool plain = false, shuffled = false;
    for (int i = 1; i < argc; ++i) {
        const bool more = i + 1 < argc;
        if (std::strcmp(argv[i], "--nodes") == 0 && more) {
            nodes = std::atoi(argv[++i]);
        } else if (std::strcmp(argv[i], "--limit") == 0 && more) {
            limit_bytes = std::strtoull(argv[++i], nullptr, 10) << 20;
        } else if (std::strcmp(argv[i], "--plain") == 0) {
            plain = true;
        } else if (std::strcmp(argv[i], "--shuffled") == 0) {
            shuffled = true;
        } else {
            std::fprintf(stderr, "usage: %s [--nodes N] [--limit MIB] [--plain] [--shuffled]\n",
                         argv[0]);
            return 2;
        }
    }
    if (nodes < 2) {
        std::fprintf(stderr, "--nodes must be at least 2\n");
        return 2;
    }
    GhostConfig config;
    config.resident_limit_bytes = static_cast<std::size_t>(limit_bytes);
    if (!GhostMemoryManager::Instance().Initialize(config)) {
        return EXIT_FAILURE;
    }

    if (plain) {
        work<std::map<int, std::string>>(nodes, shuffled);
        std::printf("peak %.1f MiB\n", static_cast<double>(peak_bytes()) / (1 << 20));
        return EXIT_SUCCESS;
    }
    using Allocator = GhostAllocator<std::pair<const int, std::string>>;
    StorePeak store_peak;
    work<std::map<int, std::string, std::less<int>, Allocator>>(nodes, shuffled);
    const std::uint64_t store_bytes = store_peak.stop();
    const double may = static_cast<double>(limit_bytes + store_bytes) * 1.05 + (16 << 20);
    const double peak = static_cast<double>(peak_bytes());
    const ghostmem_stats stats = GhostMemoryManager::Instance().Statistics();
    std::printf("peak %.1f MiB, may be %.1f: limit %.1f, store %.1f\n", peak / (1 << 20),
                may / (1 << 20), static_cast<double>(limit_bytes) / (1 << 20),
                static_cast<double>(store_bytes) / (1 << 20));
    std::printf("%" PRIu64 " faults, %" PRIu64 " refaults, %" PRIu64 " overdrafts\n", stats.faults,
                stats.refaults, stats.overdrafts);
    if (peak > may) {
        std::fprintf(stderr, "too much memory\n");
        return EXIT_FAILURE;
    }
}
