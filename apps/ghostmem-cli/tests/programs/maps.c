/* Anonymous mappings: parts unmapped, protected, discarded, moved. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #what, errno); exit(1); } } while (0)
#define MIB (1ul << 20)

static void *map(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}
static void fill(unsigned *p, size_t bytes, unsigned seed) { for (size_t i = 0; i < bytes / 4; i++) p[i] = (unsigned)i * 2654435761u + seed; }
static int good(unsigned *p, size_t first, size_t bytes, unsigned seed) {
    for (size_t i = first / 4; i < (first + bytes) / 4; i++) if (p[i] != (unsigned)i * 2654435761u + seed) return 0;
    return 1;
}
static sigjmp_buf back;
static void on_fault(int signal) { (void)signal; siglongjmp(back, 1); }

int main(void) {
    for (int round = 0; round < 3; round++) {
        unsigned *p = map(16 * MIB);
        for (size_t i = 0; i < 4 * MIB; i += 1000) CHECK(p[i] == 0);
        fill(p, 16 * MIB, 1);
        CHECK(good(p, 0, 16 * MIB, 1));
        /* A hole, then everything around it. */
        CHECK(munmap((char *)p + 4 * MIB, 2 * MIB) == 0);
        CHECK(good(p, 0, 4 * MIB, 1) && good(p, 6 * MIB, 10 * MIB, 1));
        CHECK(madvise((char *)p + 8 * MIB, MIB, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < MIB / 4; i++) CHECK(p[2 * MIB + i] == 0);
        CHECK(good(p, 9 * MIB, 7 * MIB, 1));
        unsigned *q = map(8 * MIB);
        fill(q, 8 * MIB, 7);
        CHECK(good(p, 6 * MIB, 2 * MIB, 1));
        q = mremap(q, 8 * MIB, 24 * MIB, MREMAP_MAYMOVE);
        CHECK(q != MAP_FAILED && good(q, 0, 8 * MIB, 7));
        for (size_t i = 8 * MIB / 4; i < 24 * MIB / 4; i++) CHECK(q[i] == 0);
        q = mremap(q, 24 * MIB, 4 * MIB, 0);
        CHECK(q != MAP_FAILED && good(q, 0, 4 * MIB, 7));
        /* Fresh pages over old ones. */
        CHECK(mmap((char *)q + MIB, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (char *)q + MIB);
        for (size_t i = MIB / 4; i < 2 * MIB / 4; i++) CHECK(q[i] == 0);
        CHECK(good(q, 0, MIB, 7) && good(q, 2 * MIB, 2 * MIB, 7));
        /* A protected page faults, and comes back as it was. */
        signal(SIGSEGV, on_fault);
        CHECK(mprotect((char *)q + 3 * MIB, 4096, PROT_READ) == 0);
        if (sigsetjmp(back, 1) == 0) { *((volatile char *)q + 3 * MIB) = 1; CHECK(!"reached"); }
        CHECK(good(q, 2 * MIB, 2 * MIB, 7));
        CHECK(mprotect((char *)q + 3 * MIB, 4096, PROT_READ | PROT_WRITE) == 0);
        *((volatile char *)q + 3 * MIB) ^= 0;
        CHECK(good(q, 2 * MIB, 2 * MIB, 7));
        CHECK(mprotect((char *)q, 4096, PROT_NONE) == 0);
        if (sigsetjmp(back, 1) == 0) { (void)*((volatile char *)q + 5); CHECK(!"reached"); }
        CHECK(mprotect((char *)q, 4096, PROT_READ | PROT_WRITE) == 0 && good(q, 0, MIB, 7));
        /* Shared memory over it, and over what is reserved. */
        unsigned *place = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        fill(place, 2 * MIB, 5);
        CHECK(mremap(place, 2 * MIB, 8 * MIB, MREMAP_FIXED, q) == MAP_FAILED && errno == EINVAL);
        CHECK(good(q, 0, MIB, 7) && good(q, 2 * MIB, 2 * MIB, 7) && good(place, 0, 2 * MIB, 5));
        CHECK(mremap(place, 2 * MIB, 2 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
        CHECK(good(q, 0, 2 * MIB, 5) && good(q, 2 * MIB, 2 * MIB, 7));
        place = mmap(NULL, 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        unsigned *r = map(2 * MIB);
        fill(r, 2 * MIB, 3);
        CHECK(mremap(r, 2 * MIB, 2 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
        CHECK(good(place, 0, 2 * MIB, 3) && munmap(place, 2 * MIB) == 0);
        /* Parent and child go their own ways. */
        pid_t child = fork();
        if (child == 0) { fill(p, 4 * MIB, 99); _exit(good(p, 0, 4 * MIB, 99) && good(p, 9 * MIB, 7 * MIB, 1) ? 0 : 1); }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(good(p, 0, 4 * MIB, 1));
        CHECK(munmap(p, 16 * MIB) == 0);
        CHECK(munmap(q, 4 * MIB) == 0);
    }
    printf("ok\n");
    return 0;
}
