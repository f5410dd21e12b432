// The headers beside system headers that define PAGE_SIZE, and with the
// program's own limit. Compiled several times, with and without:
//   BEFORE, AFTER   <sys/user.h>, whose PAGE_SIZE is a macro, around ours
//   OWN_PAGE_SIZE   the program has a constant of that name
//   EXPECT_PAGES    the limit that must come out

#if defined(BEFORE)
#include <sys/user.h>
#if !defined(PAGE_SIZE)
#error "this system's <sys/user.h> has no PAGE_SIZE: the test shows nothing"
#endif
#endif
#if defined(OWN_PAGE_SIZE)
#define GHOSTMEM_NO_PAGE_SIZE
static const int PAGE_SIZE = 1;
#endif

#include "ghostmem/GhostAllocator.h"
#include "ghostmem/Version.h"

#if defined(AFTER)
#include <sys/user.h>
#endif

#include <cstdio>
#include <vector>

#include "../check.h"

bool other_file_sees_the_same_heap(const void* address);

int main() {
    static_assert(GHOSTMEM_PAGE_SIZE == 4096);
#if defined(OWN_PAGE_SIZE)
    static_assert(PAGE_SIZE == 1);
#else
    static_assert(PAGE_SIZE == 4096);
#endif
    std::vector<long, GhostAllocator<long>> numbers;
    for (long i = 0; i < 100000; ++i) {
        numbers.push_back(i);
    }
    for (long i = 0; i < 100000; ++i) {
        CHECK(numbers[static_cast<std::size_t>(i)] == i);
    }
    const ghostmem_stats stats = GhostMemoryManager::Instance().Statistics();
    CHECK(stats.resident_limit_bytes == EXPECT_PAGES * 4096);
    CHECK(other_file_sees_the_same_heap(numbers.data()));
    std::puts("names: all right");
}
