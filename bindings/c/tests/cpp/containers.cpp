// GhostAllocator in every standard container, against the same container with
// std::allocator, under a limit of five pages. Argument: the seed of the random
// operations.

#include "ghostmem/GhostAllocator.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <forward_list>
#include <list>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <scoped_allocator>
#include <set>
#include <stack>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../check.h"

namespace {

template <typename T>
using Vector = std::vector<T, GhostAllocator<T>>;
using String = std::basic_string<char, std::char_traits<char>, GhostAllocator<char>>;
template <typename K, typename V>
using Pairs = GhostAllocator<std::pair<const K, V>>;

std::uint64_t seed = 1;

ghostmem_stats stats() {
    return GhostMemoryManager::Instance().Statistics();
}

String text_of(std::uint64_t number) {
    // Some short enough to lie in the object, some long enough for a block.
    String text("value ");
    text += std::to_string(number).c_str();
    text.append(number % 50, '.');
    return text;
}

void the_requirements_hold() {
    using Traits = std::allocator_traits<GhostAllocator<int>>;
    static_assert(std::is_same_v<Traits::value_type, int>);
    static_assert(std::is_same_v<Traits::rebind_alloc<char>, GhostAllocator<char>>);
    static_assert(Traits::is_always_equal::value);
    static_assert(Traits::propagate_on_container_move_assignment::value);
    static_assert(std::is_empty_v<GhostAllocator<int>>);
    static_assert(std::is_nothrow_copy_constructible_v<GhostAllocator<int>>);
    static_assert(std::is_nothrow_constructible_v<GhostAllocator<int>, GhostAllocator<char>>);
    static_assert(sizeof(Vector<int>) == sizeof(std::vector<int>));
    GhostAllocator<int> ints;
    GhostAllocator<std::string> strings(ints);
    CHECK(ints == strings && !(ints != strings));
    CHECK(ints == GhostAllocator<int>(strings));
    int* none = ints.allocate(0);
    ints.deallocate(none, 0);
    // What one allocated another frees.
    int* some = ints.allocate(1000);
    some[999] = 5;
    GhostAllocator<int>().deallocate(some, 1000);
}

template <typename T>
bool refuses(std::size_t count) {
    try {
        GhostAllocator<T> allocator;
        allocator.deallocate(allocator.allocate(count), count);
        return false;
    } catch (const std::bad_alloc&) {
        return true;
    }
}

void too_much_is_bad_alloc() {
    CHECK(refuses<char>(SIZE_MAX));
    CHECK(refuses<char>(SIZE_MAX / 2));
    CHECK(refuses<int>(SIZE_MAX / 4 + 2));  // 8 bytes if it overflowed
    CHECK((refuses<std::array<char, 4096>>(SIZE_MAX / 4096 + 2)));
    CHECK(!refuses<int>(10));
    Vector<std::uint64_t> numbers(10, 7);
    bool thrown = false;
    try {
        numbers.resize(numbers.max_size());
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    CHECK(thrown && numbers == Vector<std::uint64_t>(10, 7));
}

template <std::size_t Align>
struct alignas(Align) Aligned {
    explicit Aligned(int n) : number(n) {}
    int number;
};

template <std::size_t Align>
void aligned() {
    Vector<Aligned<Align>> vector;
    std::list<Aligned<Align>, GhostAllocator<Aligned<Align>>> list;
    for (int i = 0; i < 50; ++i) {
        vector.emplace_back(i);
        list.emplace_back(i);
        CHECK(reinterpret_cast<std::uintptr_t>(vector.data()) % Align == 0);
        CHECK(reinterpret_cast<std::uintptr_t>(&list.back()) % Align == 0);
    }
    auto at = list.begin();
    for (int i = 0; i < 50; ++i, ++at) {
        CHECK(vector[static_cast<std::size_t>(i)].number == i && at->number == i);
    }
}

// Random operations at both ends and in the middle.
template <typename Ghost, typename Plain>
void sequences() {
    std::mt19937_64 random(seed);
    Ghost ghost;
    Plain plain;
    for (int step = 0; step < 1500; ++step) {
        const std::uint64_t value = random();
        switch (random() % 6) {
        case 0:
        case 1:
        case 2:
            ghost.push_back(value);
            plain.push_back(value);
            break;
        case 3:
            if (!plain.empty()) {
                ghost.pop_back();
                plain.pop_back();
            }
            break;
        case 4: {
            const auto offset = static_cast<std::ptrdiff_t>(random() % (plain.size() + 1));
            ghost.insert(std::next(ghost.begin(), offset), value);
            plain.insert(std::next(plain.begin(), offset), value);
            break;
        }
        default:
            if (!plain.empty()) {
                const auto offset = static_cast<std::ptrdiff_t>(random() % plain.size());
                ghost.erase(std::next(ghost.begin(), offset));
                plain.erase(std::next(plain.begin(), offset));
            }
        }
        CHECK(ghost.size() == plain.size());
    }
    CHECK(std::equal(ghost.begin(), ghost.end(), plain.begin(), plain.end()));
    Ghost copy = ghost;
    Ghost moved = std::move(ghost);
    CHECK(copy == moved);
    copy.clear();
    swap(copy, moved);
    CHECK(std::equal(copy.begin(), copy.end(), plain.begin(), plain.end()));
}

void forward_lists() {
    std::mt19937_64 random(seed);
    std::forward_list<std::uint64_t, GhostAllocator<std::uint64_t>> ghost;
    std::forward_list<std::uint64_t> plain;
    for (int step = 0; step < 6000; ++step) {
        const std::uint64_t value = random();
        if (value % 3 != 0 || plain.empty()) {
            ghost.push_front(value);
            plain.push_front(value);
        } else {
            ghost.pop_front();
            plain.pop_front();
        }
    }
    ghost.sort();
    plain.sort();
    CHECK(std::equal(ghost.begin(), ghost.end(), plain.begin(), plain.end()));
}

template <typename Ghost, typename Plain>
void maps() {
    std::mt19937_64 random(seed);
    Ghost ghost;
    Plain plain;
    for (int step = 0; step < 6000; ++step) {
        const std::uint64_t key = random() % 1500;
        if (random() % 4 != 0) {
            const std::uint64_t number = random();
            ghost.emplace(key, text_of(number));
            plain.emplace(key, text_of(number).c_str());
        } else {
            CHECK(ghost.erase(key) == plain.erase(key));
        }
    }
    CHECK(ghost.size() == plain.size());
    for (std::uint64_t key = 0; key < 1500; ++key) {
        CHECK(ghost.count(key) == plain.count(key));
        if (plain.count(key) == 1) {
            CHECK(ghost.find(key)->second == plain.find(key)->second.c_str());
        }
    }
}

template <typename Ghost, typename Plain>
void sets() {
    std::mt19937_64 random(seed);
    Ghost ghost;
    Plain plain;
    for (int step = 0; step < 6000; ++step) {
        const std::uint64_t key = random() % 1500;
        if (random() % 4 != 0) {
            ghost.insert(key);
            plain.insert(key);
        } else {
            CHECK(ghost.erase(key) == plain.erase(key));
        }
    }
    CHECK(ghost.size() == plain.size());
    for (std::uint64_t key = 0; key < 1500; ++key) {
        CHECK(ghost.count(key) == plain.count(key));
    }
}

void strings() {
    String text;
    std::string plain;
    for (int i = 0; i < 5000; ++i) {
        text += std::to_string(i).c_str();
        plain += std::to_string(i);
    }
    CHECK(text.size() == plain.size());
    CHECK(text == plain.c_str());
    CHECK(text.substr(1000, 20) == plain.substr(1000, 20).c_str());
    CHECK(text.find("4999") == plain.find("4999"));
    text.erase(10, 10000);
    plain.erase(10, 10000);
    text.insert(5, "inserted");
    plain.insert(5, "inserted");
    text.replace(0, 3, 100, 'r');
    plain.replace(0, 3, 100, 'r');
    CHECK(text == plain.c_str());
}

void adapters() {
    std::stack<int, std::deque<int, GhostAllocator<int>>> stack;
    std::queue<int, std::deque<int, GhostAllocator<int>>> queue;
    std::priority_queue<int, Vector<int>> heap;
    for (int i = 0; i < 5000; ++i) {
        stack.push(i);
        queue.push(i);
        heap.push(i * 7919 % 5000);
    }
    for (int i = 0; i < 5000; ++i) {
        CHECK(stack.top() == 4999 - i && queue.front() == i && heap.top() == 4999 - i);
        stack.pop();
        queue.pop();
        heap.pop();
    }
}

void shared_pointers() {
    struct Counted {
        explicit Counted(int* counter) : count(counter) {
            ++*count;
        }
        ~Counted() {
            --*count;
        }
        int* count;
        char bytes[100] = {};
    };
    int living = 0;
    {
        std::vector<std::shared_ptr<Counted>> pointers;
        for (int i = 0; i < 1000; ++i) {
            pointers.push_back(std::allocate_shared<Counted>(GhostAllocator<Counted>(), &living));
            CHECK(GhostMemoryManager::Instance().IsGhost(pointers.back().get()));
        }
        std::weak_ptr<Counted> weak = pointers.front();
        const std::vector<std::shared_ptr<Counted>> more = pointers;
        pointers.clear();
        CHECK(living == 1000 && !weak.expired());
    }
    CHECK(living == 0);
}

void nested_containers() {
    using Row = Vector<String>;
    std::map<int, Row, std::less<>, std::scoped_allocator_adaptor<Pairs<int, Row>>> table;
    for (int row = 0; row < 30; ++row) {
        for (std::uint64_t column = 0; column < 50; ++column) {
            table[row].push_back(text_of(column * 31));
        }
    }
    for (const auto& [row, columns] : table) {
        CHECK(row < 30 && columns.size() == 50);
        for (std::uint64_t column = 0; column < 50; ++column) {
            CHECK(columns[column] == text_of(column * 31));
        }
    }
}

void polymorphic_containers() {
#if defined(__cpp_lib_memory_resource)
    std::pmr::memory_resource* resource = GhostMem::MemoryResource();
    CHECK(resource == GhostMem::MemoryResource() && resource->is_equal(*resource));
    CHECK(!resource->is_equal(*std::pmr::new_delete_resource()));
    std::pmr::vector<std::pmr::string> texts(resource);
    std::pmr::unordered_map<int, std::pmr::string> by_number(resource);
    for (int i = 0; i < 5000; ++i) {
        texts.emplace_back("a string that is too long to lie in the object itself");
        by_number.emplace(i, texts.back());
        CHECK(GhostMemoryManager::Instance().IsGhost(texts.back().data()));
    }
    for (int i = 0; i < 5000; ++i) {
        CHECK(by_number.at(i) == texts[static_cast<std::size_t>(i)]);
    }
    void* block = resource->allocate(100, 512);
    CHECK(reinterpret_cast<std::uintptr_t>(block) % 512 == 0);
    resource->deallocate(block, 100, 512);
    bool thrown = false;
    try {
        static_cast<void>(resource->allocate(SIZE_MAX / 2));
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    CHECK(thrown);
    std::pmr::unsynchronized_pool_resource pool(resource);
    std::pmr::list<int> pooled(&pool);
    for (int i = 0; i < 10000; ++i) {
        pooled.push_back(i);
    }
    int expected = 0;
    for (const int value : pooled) {
        CHECK(value == expected++);
    }
#else
    std::puts("this standard library has no <memory_resource>");
#endif
}

void small_nodes_share_pages() {
    constexpr std::size_t count = 50000;
    const ghostmem_stats before = stats();
    std::list<int, GhostAllocator<int>> numbers;
    for (std::size_t i = 0; i < count; ++i) {
        numbers.push_back(static_cast<int>(i));
    }
    const ghostmem_stats after = stats();
    // 24 bytes a node, 32 as the allocator rounds it.
    CHECK(after.allocated_bytes - before.allocated_bytes == count * 32);
    // Every page ever faulted in for the first time, among these.
    const std::uint64_t first_touches =
        (after.faults - after.refaults) - (before.faults - before.refaults);
    CHECK(first_touches <= count * 32 / PAGE_SIZE * 5 / 4);
    int expected = 0;
    for (const int number : numbers) {
        CHECK(number == expected++);
    }
}

void threads_share_the_heap() {
    std::vector<std::thread> threads;
    for (int id = 0; id < 4; ++id) {
        threads.emplace_back([id] {
            std::map<int, String, std::less<>, Pairs<int, String>> map;
            for (int i = 0; i < 1000; ++i) {
                map.emplace(i * 7919 % 1000, text_of(static_cast<std::uint64_t>(i + id)));
            }
            for (int i = 0; i < 1000; ++i) {
                CHECK(map.at(i * 7919 % 1000) == text_of(static_cast<std::uint64_t>(i + id)));
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

// Made before main and destroyed after it.
Vector<String> global{String("made before main, and long enough for a block of its own")};

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1) {
        seed = std::strtoull(argv[1], nullptr, 10);
    }
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    CHECK(global.size() == 1 && global[0].size() > 20);
    the_requirements_hold();
    too_much_is_bad_alloc();
    aligned<64>();
    aligned<1024>();
    aligned<4096>();
    aligned<16384>();
    sequences<Vector<std::uint64_t>, std::vector<std::uint64_t>>();
    sequences<std::deque<std::uint64_t, GhostAllocator<std::uint64_t>>, std::deque<std::uint64_t>>();
    sequences<std::list<std::uint64_t, GhostAllocator<std::uint64_t>>, std::list<std::uint64_t>>();
    forward_lists();
    maps<std::map<std::uint64_t, String, std::less<>, Pairs<std::uint64_t, String>>,
         std::map<std::uint64_t, std::string>>();
    maps<std::unordered_map<std::uint64_t, String, std::hash<std::uint64_t>, std::equal_to<>,
                            Pairs<std::uint64_t, String>>,
         std::unordered_map<std::uint64_t, std::string>>();
    sets<std::set<std::uint64_t, std::less<>, GhostAllocator<std::uint64_t>>,
         std::set<std::uint64_t>>();
    sets<std::multiset<std::uint64_t, std::less<>, GhostAllocator<std::uint64_t>>,
         std::multiset<std::uint64_t>>();
    sets<std::unordered_set<std::uint64_t, std::hash<std::uint64_t>, std::equal_to<>,
                            GhostAllocator<std::uint64_t>>,
         std::unordered_set<std::uint64_t>>();
    sets<std::unordered_multiset<std::uint64_t, std::hash<std::uint64_t>, std::equal_to<>,
                                 GhostAllocator<std::uint64_t>>,
         std::unordered_multiset<std::uint64_t>>();
    strings();
    adapters();
    shared_pointers();
    nested_containers();
    polymorphic_containers();
    small_nodes_share_pages();
    threads_share_the_heap();
    const ghostmem_stats end = stats();
    CHECK(end.resident_limit_bytes == MAX_PHYSICAL_PAGES * PAGE_SIZE);
    CHECK(end.refaults > 1000 && end.evictions_dirty > 1000);
    // Only the global vector and its string are left.
    CHECK(end.allocated_bytes <= 256);
    std::printf("containers: all right, %llu refaults\n",
                static_cast<unsigned long long>(end.refaults));
}
