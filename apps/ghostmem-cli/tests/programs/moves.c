/* mremap of mappings that are taken over, to places that are, too. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sys/mman.h>

#define BYTES (1ul << 20)
#define PAGE 4096ul

static char *mapping(char with) {
    char *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    memset(p, with, BYTES);
    return p;
}
static void is(const char *p, char what, size_t from, size_t to) {
    for (size_t at = from; at < to; at++) CHECK(p[at] == what);
}
#define REFUSED(code, call) CHECK((call) == MAP_FAILED && errno == (code))

int main(int argc, char **argv) {
    (void)argc;
    prepare(argv[2]);
    const int both = MREMAP_MAYMOVE | MREMAP_FIXED;
    char *from = mapping(3), *to = mapping(4);
    evict();
    CHECK(mremap(from, BYTES, BYTES, both, to) == to);
    evict();
    is(to, 3, 0, BYTES);
    /* A part of one over a part of another; what is beside it stays. */
    char *third = mapping(5);
    CHECK(mremap(to, PAGE, 3 * PAGE, both, third + PAGE) == third + PAGE);
    evict();
    is(third, 5, 0, PAGE);
    is(third, 3, PAGE, 2 * PAGE);
    is(third, 0, 2 * PAGE, 4 * PAGE);
    is(third, 5, 4 * PAGE, BYTES);
    is(to, 3, PAGE, BYTES);

    REFUSED(EINVAL, mremap(third, BYTES, BYTES, both, third));
    REFUSED(EINVAL, mremap(third, BYTES, BYTES, both, third + PAGE));
    REFUSED(EINVAL, mremap(third, PAGE, PAGE, both, to + 1));
    REFUSED(EINVAL, mremap(third, PAGE, PAGE, MREMAP_FIXED, to + PAGE));
    REFUSED(EINVAL, mremap(third, PAGE, PAGE, 64));
    is(third, 5, 4 * PAGE, BYTES);

    /* The pages move, zero pages stay. */
    char *fourth = mapping(6);
    evict();
    REFUSED(EINVAL, mremap(fourth, BYTES, BYTES, MREMAP_DONTUNMAP, 0));
    REFUSED(EINVAL, mremap(fourth, BYTES, 2 * BYTES, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
    char *moved = mremap(fourth, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK(moved != MAP_FAILED && moved != fourth);
    evict();
    is(moved, 6, 0, BYTES);
    is(fourth, 0, 0, BYTES);
    memset(fourth, 8, BYTES);

    /* What has no access moves as well. */
    char *closed = mapping(9);
    CHECK(mprotect(closed + PAGE, PAGE, PROT_NONE) == 0);
    char *target = mapping(1);
    CHECK(mremap(closed, PAGE, PAGE, both, target) == target);
    is(target, 9, 0, PAGE);
    CHECK(munmap(closed + PAGE, BYTES - PAGE) == 0);
    evict();
    is(fourth, 8, 0, BYTES);
    is(target, 1, PAGE, BYTES);
    puts("ok");
    return 0;
}
