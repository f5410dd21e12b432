/* mlock, mlock2 and munlock of ranges that are the heap's in parts only: files and other
 * mappings lie in them, before them, behind them. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PART = 16 * PAGE, WHOLE = 4 * PART };

static char *mapped(size_t bytes) {
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    memset(p, 7, bytes);
    return p;
}

static void holds(char *p) {
    for (int i = 0; i < WHOLE; i += 512) CHECK(p[i] == (i / PART == 1 ? 9 : 7));
}

/* Whether all of a range is in memory, as far as the system says. */
static int is_there(char *p, size_t bytes) {
    unsigned char pages[WHOLE / PAGE + 1];
    CHECK(mincore(p, bytes, pages) == 0);
    for (size_t i = 0; i < bytes / PAGE; i++)
        if (!(pages[i] & 1)) return 0;
    return 1;
}

/* Kilobytes that the system says are locked. */
static long locked(void) {
    char line[200];
    long found = -1;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file)) sscanf(line, "VmLck: %ld", &found);
    fclose(file);
    return found;
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    prepare("6000000");
    /* Where little may be locked, there is little to see. */
    static char much[8 * WHOLE];
    int may_lock = mlock(much, sizeof much) == 0;
    munlock(much, sizeof much);
    if (!may_lock) {
        puts("ok");
        return 0;
    }
    int file = memfd_create("part", 0);
    CHECK(file >= 0 && ftruncate(file, PART) == 0);
    long before = locked();
    /* Again and again: what is unlocked is held no longer. */
    for (int round = 0; round < 40; round++) {
        char *p = mapped(WHOLE);
        CHECK(mmap(p + PART, PART, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == p + PART);
        memset(p + PART, 9, PART);
        if (round % 10 == 0) evict();
        CHECK(mlock(p, WHOLE) == 0);
        if (round % 10 == 0) evict();
        CHECK(is_there(p, WHOLE));
        holds(p);
        CHECK(locked() >= before + PART / 1024);
        CHECK(munlock(p, WHOLE) == 0);
        CHECK(locked() <= before + 4 * (WHOLE - PART) / 1024);
        /* Across an edge, from within a page to within a page. */
        CHECK(mlock(p + PART - 100, 200) == 0 && munlock(p + PART - 100, 200) == 0);
        CHECK(mlock(p + 2 * PART - 1, 2) == 0);
        CHECK(munlock(p + 2 * PART - 1, 2) == 0);
        CHECK(mlock2(p, WHOLE, MLOCK_ONFAULT) == 0 && munlock(p, WHOLE) == 0);
        errno = 0;
        CHECK(mlock2(p, WHOLE, 64) == -1 && errno == EINVAL);
        holds(p);
        /* Locked memory is not given up; afterwards it is. */
        CHECK(mlock(p, WHOLE) == 0);
        errno = 0;
        CHECK(madvise(p, PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
        CHECK(munlock(p, WHOLE) == 0 && madvise(p, PAGE, MADV_DONTNEED) == 0 && p[5] == 0);
        /* Nothing is there in the midst. */
        CHECK(munmap(p + 2 * PART, PAGE) == 0);
        errno = 0;
        CHECK(mlock(p, WHOLE) == -1 && errno == ENOMEM);
        munlock(p, WHOLE);
        CHECK(munmap(p, WHOLE) == 0);
        errno = 0;
        CHECK(mlock(p, WHOLE) == -1 && errno == ENOMEM);
    }
    /* Only whole pages are advised, protected, or moved. */
    char *p = mapped(WHOLE);
    errno = 0;
    CHECK(msync(p + 1, WHOLE, MS_SYNC) == -1 && errno == EINVAL);
    errno = 0;
    CHECK(madvise(p + 1, WHOLE, MADV_DONTNEED) == -1 && errno == EINVAL);
    errno = 0;
    CHECK(mprotect(p + 1, WHOLE, PROT_READ) == -1 && errno == EINVAL);
    errno = 0;
    CHECK(mremap(p + 1, WHOLE, WHOLE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    errno = 0;
    CHECK(munmap(p + 1, WHOLE) == -1 && errno == EINVAL);
    for (int i = 0; i < WHOLE; i += 512) CHECK(p[i] == 7);
    puts("ok");
    return 0;
}
