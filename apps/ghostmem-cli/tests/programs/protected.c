/* Pages without access, or that may only be read, are that after they have moved (mremap). */
#define _GNU_SOURCE
#include "access.h"
#include <unistd.h>

static int is_mapped(char *p) {
    unsigned char there;
    return mincore(p, PAGE, &there) == 0;
}

/* Few pages, which stay resident, and more than do. */
static void moves(size_t bytes, int access) {
    for (int way = 0; way < 6; way++) {
        char *from = mapping(bytes, 7), *place = mapping(4 * bytes, 3), *to = MAP_FAILED;
        size_t now = bytes;
        evict();
        CHECK(mprotect(from, bytes, access) == 0);
        switch (way) {
        case 0: to = mremap(from, bytes, now = 2 * bytes, MREMAP_MAYMOVE); break;
        case 1: to = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place); break;
        case 2: to = mremap(from, bytes, now = bytes / 2, 0); break;
        case 3: to = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0); break;
        case 4: to = mremap(from, bytes, now = 2 * bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place + bytes); break;
        case 5: to = mremap(from, bytes, now = bytes / 2, MREMAP_MAYMOVE | MREMAP_FIXED, place + bytes); break;
        }
        CHECK(to != MAP_FAILED);
        has(to, now, access);
        evict();
        has(to, now, access);
        if (way == 3) {
            has(from, bytes, access);
            CHECK(mprotect(from, bytes, RW) == 0);
            is(from, 0, 0, bytes);
            memset(from, 4, bytes);
        }
        CHECK(is_mapped(from) == (way == 2 || way == 3));
        CHECK(mprotect(to, now, RW) == 0);
        evict();
        size_t kept = now < bytes ? now : bytes;
        is(to, 7, 0, kept);
        is(to, 0, kept, now);
        memset(to, 8, now);
        evict();
        is(to, 8, 0, now);
        if (way == 4) is(place, 3, 0, bytes);
        if (way == 3) is(from, 4, 0, bytes);
        CHECK(munmap(to, now) == 0 && munmap(place, 4 * bytes) == 0);
        CHECK(munmap(from, bytes) == 0);
    }
}

/* Two accesses are two mappings, which do not grow as one. */
static void halves(size_t bytes, int access) {
    char *p = mapping(bytes, 7);
    CHECK(mprotect(p + bytes / 2, bytes / 2, access) == 0);
    CHECK(mremap(p, bytes, 2 * bytes, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
    has(p, bytes / 2, RW);
    has(p + bytes / 2, bytes / 2, access);
    char *moved = mremap(p + bytes / 2, bytes / 2, bytes, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    has(moved, bytes, access);
    is(p, 7, 0, bytes / 2);
    char *other = mremap(p, bytes / 2, bytes, MREMAP_MAYMOVE);
    CHECK(other != MAP_FAILED);
    has(other, bytes, RW);
    is(other, 7, 0, bytes / 2);
    /* Shorter it may be. */
    CHECK(mprotect(other + bytes / 2, bytes / 2, access) == 0);
    CHECK(mremap(other, bytes, PAGE, 0) == other);
    has(other, PAGE, RW);
    CHECK(munmap(other, PAGE) == 0 && munmap(moved, bytes) == 0);
}

int main(void) {
    catch_faults();
    /* More than stays resident, and little enough to be touched often. */
    prepare("7000000");
    const int accesses[] = {PROT_NONE, PROT_READ, RW};
    for (int at = 0; at < 3; at++) {
        moves(32 * PAGE, accesses[at]);
        moves(256 * PAGE, accesses[at]);
        if (at < 2) halves(32 * PAGE, accesses[at]);
        if (at < 2) halves(256 * PAGE, accesses[at]);
    }
    puts("ok");
    return 0;
}
