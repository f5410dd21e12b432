/* Memory that is the kernel's, in the place of heap memory or beside it, moves over heap
 * memory (mremap with a place): that shows what was moved, however often its pages are put
 * away, and what is beside it stays. What it left is free. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define BYTES (1ul << 20)
#define PART (64ul << 10)
#define RW (PROT_READ | PROT_WRITE)
#define BOTH (MREMAP_MAYMOVE | MREMAP_FIXED)

static int file;

static char *mapping(char with) {
    char *p = mmap(NULL, BYTES, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    memset(p, with, BYTES);
    return p;
}
static void is(const char *p, char what, size_t from, size_t to) {
    for (size_t at = from; at < to; at++) CHECK(p[at] == what);
}
static void child_sees(const char *p, char what, size_t from, size_t to) {
    pid_t child = fork();
    if (child == 0) {
        is(p, what, from, to);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}
static int is_mapped(char *p) {
    unsigned char there;
    return mincore(p, PAGE, &there) == 0;
}

/* A part of a mapping that is a file's, over the start of another mapping. */
static void a_file(int flags, int kept) {
    char *from = mapping(1), *to = mapping(9);
    evict();
    CHECK(mmap(from, PART, RW, flags | MAP_FIXED, file, 0) == from);
    CHECK(mremap(from, PART, PART, BOTH | kept, to) == to);
    is(to, 5, 0, PART);
    is(to, 9, PART, BYTES);
    to[100] = 6;
    evict();
    CHECK(madvise(to, BYTES, MADV_PAGEOUT) == 0);
    evict();
    CHECK(to[100] == 6);
    is(to, 5, 101, PART);
    is(to, 9, PART, BYTES);
    is(from, 1, PART, BYTES);
    child_sees(to, 5, 101, PART);
    child_sees(to, 9, PART, BYTES);
    CHECK(is_mapped(from) == (kept != 0));
    /* It is the file still. */
    char byte = 0;
    CHECK(pread(file, &byte, 1, 100) == 1 && byte == (flags == MAP_SHARED ? 6 : 5));
    CHECK(pwrite(file, "\5", 1, 100) == 1);
    CHECK(munmap(to, BYTES) == 0 && munmap(from, BYTES) == 0);
    /* What takes the place of both is memory like any other. */
    for (int i = 0; i < 4; i++) {
        char *fresh = mmap(NULL, BYTES, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        is(fresh, 0, 0, BYTES);
        memset(fresh, 20 + i, BYTES);
        evict();
        is(fresh, 20 + i, 0, BYTES);
        CHECK(munmap(fresh, BYTES) == 0);
    }
}

/* Pages without access, or that are only read: more of them than stay resident. */
static void closed(int access, int reserved) {
    char *from = mapping(7);
    char *to = mmap(NULL, 4 * BYTES, reserved ? PROT_NONE : RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(to != MAP_FAILED);
    if (!reserved) memset(to, 3, 4 * BYTES);
    evict();
    CHECK(mprotect(from, BYTES, access) == 0);
    CHECK(mremap(from, BYTES, BYTES, BOTH, to + BYTES) == to + BYTES);
    CHECK(!is_mapped(from));
    evict();
    CHECK(mprotect(to + BYTES, BYTES / 2, RW) == 0);
    is(to, 7, BYTES, BYTES + BYTES / 2);
    memset(to + BYTES, 8, BYTES / 2);
    evict();
    CHECK(mprotect(to + BYTES, BYTES, RW) == 0);
    evict();
    is(to, 8, BYTES, BYTES + BYTES / 2);
    is(to, 7, BYTES + BYTES / 2, 2 * BYTES);
    child_sees(to, 7, BYTES + BYTES / 2, 2 * BYTES);
    if (!reserved) {
        is(to, 3, 0, BYTES);
        is(to, 3, 2 * BYTES, 4 * BYTES);
    }
    CHECK(munmap(to, 4 * BYTES) == 0);
}

/* A part is closed, more than stays resident, and opened again: it moves with the rest. */
static void in_part(size_t first, size_t bytes, int flags) {
    char *p = mapping(7);
    CHECK(mprotect(p + first, bytes, PROT_READ) == 0);
    evict();
    is(p, 7, 0, BYTES);
    CHECK(mprotect(p + first, bytes, RW) == 0);
    memset(p + first, 8, bytes);
    evict();
    size_t now = flags & MREMAP_DONTUNMAP ? BYTES : 2 * BYTES;
    char *to = mremap(p, BYTES, now, MREMAP_MAYMOVE | flags, 0);
    CHECK(to != MAP_FAILED);
    evict();
    is(to, 7, 0, first);
    is(to, 8, first, first + bytes);
    is(to, 7, first + bytes, BYTES);
    is(to, 0, BYTES, now);
    memset(to, 9, now);
    evict();
    is(to, 9, 0, now);
    child_sees(to, 9, 0, now);
    CHECK(munmap(to, now) == 0);
    if (flags == 0) {
        CHECK(!is_mapped(p) && !is_mapped(p + first));
        return;
    }
    is(p, 0, 0, BYTES);
    memset(p, 4, BYTES);
    evict();
    is(p, 4, 0, BYTES);
    CHECK(munmap(p, BYTES) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    char name[4096], bytes[PART];
    snprintf(name, sizeof name, "%s/ordinary.bytes", argv[1]);
    file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    memset(bytes, 5, PART);
    CHECK(write(file, bytes, PART) == (ssize_t)PART);

    a_file(MAP_PRIVATE, 0);
    a_file(MAP_SHARED, 0);
    for (int access = 0; access < 2; access++) {
        closed(access ? PROT_READ : PROT_NONE, 0);
        closed(access ? PROT_READ : PROT_NONE, 1);
    }

    for (int flags = 0; flags <= MREMAP_DONTUNMAP; flags += MREMAP_DONTUNMAP) {
        in_part(0, BYTES / 2, flags);
        in_part(BYTES / 2, BYTES / 2, flags);
        in_part(BYTES / 4, BYTES / 2, flags);
    }

    /* What is refused changes nothing. */
    char *from = mapping(1), *to = mapping(9);
    CHECK(mmap(from, PART, RW, MAP_SHARED | MAP_FIXED, file, 0) == from);
    CHECK(mremap(from, PART, PART, BOTH, to + 1) == MAP_FAILED && errno == EINVAL);
    CHECK(mremap(from, PART, PART, MREMAP_FIXED, to) == MAP_FAILED && errno == EINVAL);
    CHECK(mremap(from, PART, PART, BOTH, from + PAGE) == MAP_FAILED && errno == EINVAL);
    /* Two mappings are not made longer as one. */
    CHECK(mremap(from, 2 * PART, 4 * PART, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
    CHECK(mremap(from + PART - PAGE, PART, 2 * PART, BOTH, to) == MAP_FAILED && errno == EFAULT);
    is(from, 5, 0, PART);
    is(from, 1, PART, BYTES);
    evict();
    is(to, 9, 0, BYTES);
    /* Longer, shorter. */
    CHECK(mremap(from, PART, PAGE, BOTH, to + PAGE) == to + PAGE);
    evict();
    is(to, 9, 0, PAGE);
    is(to, 5, PAGE, 2 * PAGE);
    is(to, 9, 2 * PAGE, BYTES);
    /* What lies beside it may be a gap. */
    unsigned char there[16];
    CHECK(munmap(to + 8 * PAGE, PAGE) == 0);
    CHECK(mincore(to + PAGE, 7 * PAGE, there) == 0 && msync(to + PAGE, 7 * PAGE, MS_SYNC) == 0);
    CHECK(mincore(to + PAGE, 16 * PAGE, there) == -1 && errno == ENOMEM);
    CHECK(mincore(to + 2 * PAGE, 7 * PAGE, there) == -1 && errno == ENOMEM);
    CHECK(msync(to + PAGE, 16 * PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    puts("ok");
    return 0;
}
