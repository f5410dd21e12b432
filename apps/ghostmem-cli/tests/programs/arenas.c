/* Allocators that reserve first and use later: as jemalloc, a Java heap and V8 do it, and
 * ten thousand ranges. Every byte is looked at, and what is not there must fault. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1ul << 20)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)

static sigjmp_buf back;
static volatile int signal_seen;
static void on_fault(int number) { signal_seen = number; siglongjmp(back, 1); }

/* A touch that must fault, as the kernel says it of such memory. */
static void refused(volatile char *p, int store) {
    signal_seen = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (store) *p = 1; else (void)*p;
        printf("wrong: %p was there\n", (void *)p);
        exit(1);
    }
    CHECK(signal_seen == SIGSEGV);
}
static unsigned long word(const void *p, unsigned seed) { return ((unsigned long)p >> 3) * 0x9E3779B97F4A7C15ul * (seed | 1) >> 17; }
/* Half of each page is what compresses, half is not. */
static void fill(char *p, size_t bytes, unsigned seed) {
    for (unsigned long *w = (void *)p; (char *)w < p + bytes; w++) *w = ((unsigned long)w & 2048) ? seed : word(w, seed);
}
static void is(char *p, size_t bytes, unsigned seed) {
    for (unsigned long *w = (void *)p; (char *)w < p + bytes; w++)
        if (*w != (((unsigned long)w & 2048) ? seed : word(w, seed))) { printf("wrong: %p is %lx\n", (void *)w, *w); exit(1); }
}
static void zero(char *p, size_t bytes) { for (size_t i = 0; i < bytes; i += 8) CHECK(*(unsigned long *)(p + i) == 0); }
static char *reserve(size_t bytes, int flags) {
    char *p = mmap(NULL, bytes, PROT_NONE, ANON | flags, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}
#define OK(call) CHECK((call) == 0)

/* Reserve, commit by mprotect, purge by DONTNEED and FREE, decommit by a fixed mmap. */
static void jemalloc_like(void) {
    char *p = reserve(1024 * MIB, 0);
    refused(p + 5 * PAGE, 0);
    refused(p + 700 * MIB, 1);
    for (int chunk = 0; chunk < 3; chunk++) {
        char *c = p + chunk * 300 * MIB;
        OK(mprotect(c, 4 * MIB, RW));
        zero(c, 64 * PAGE);
        fill(c, 4 * MIB, 1 + chunk);
    }
    for (int chunk = 0; chunk < 3; chunk++) is(p + chunk * 300 * MIB, 4 * MIB, 1 + chunk);
    refused(p + 4 * MIB, 1);
    OK(madvise(p + MIB, MIB, MADV_DONTNEED));
    zero(p + MIB, MIB);
    is(p, MIB, 1);
    is(p + 2 * MIB, 2 * MIB, 1);
    OK(madvise(p + 300 * MIB, MIB, MADV_FREE));
    fill(p + 300 * MIB, MIB, 9);
    is(p + 300 * MIB, MIB, 9);
    CHECK(mmap(p + 2 * MIB, MIB, PROT_NONE, ANON | MAP_FIXED | MAP_NORESERVE, -1, 0) == p + 2 * MIB);
    refused(p + 2 * MIB, 0);
    refused(p + 3 * MIB - 1, 1);
    is(p, MIB, 1);
    is(p + 3 * MIB, MIB, 1);
    OK(mprotect(p + 2 * MIB, MIB, RW));
    zero(p + 2 * MIB, MIB);
    /* What is closed keeps what it holds. */
    OK(mprotect(p + 3 * MIB, 16 * PAGE, PROT_NONE));
    refused(p + 3 * MIB + 5, 0);
    OK(mprotect(p + 3 * MIB, 16 * PAGE, PROT_READ));
    refused(p + 3 * MIB + 5, 1);
    is(p + 3 * MIB, 16 * PAGE, 1);
    OK(mprotect(p + 3 * MIB, 16 * PAGE, RW));
    is(p + 3 * MIB, MIB, 1);
    /* A child has it as it was. */
    pid_t child = fork();
    if (child == 0) {
        is(p + 600 * MIB, 4 * MIB, 3);
        refused(p + 500 * MIB, 1);
        fill(p + 600 * MIB, MIB, 77);
        OK(mprotect(p + 500 * MIB, MIB, RW));
        fill(p + 500 * MIB, MIB, 5);
        is(p + 500 * MIB, MIB, 5);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    is(p + 600 * MIB, 4 * MIB, 3);
    refused(p + 500 * MIB, 1);
    OK(munmap(p, 1024 * MIB));
    refused(p + 600 * MIB, 0);
}

/* Reserve, commit and decommit by fixed mappings; a moving collector's remapping. */
static void java_like(void) {
    char *p = reserve(512 * MIB, MAP_NORESERVE);
    for (int round = 0; round < 2; round++) {
        for (int region = 0; region < 6; region++) {
            char *r = p + region * 32 * MIB;
            CHECK(mmap(r, MIB, RW, ANON | MAP_FIXED | MAP_NORESERVE, -1, 0) == r);
            zero(r, MIB);
            fill(r, MIB, region + round);
        }
        for (int region = 0; region < 6; region++) is(p + region * 32 * MIB, MIB, region + round);
        refused(p + MIB, 1);
        /* Half of each goes. */
        for (int region = 0; region < 6; region++) {
            char *r = p + region * 32 * MIB + MIB / 2;
            CHECK(mmap(r, MIB / 2, PROT_NONE, ANON | MAP_FIXED | MAP_NORESERVE, -1, 0) == r);
            refused(r, 0);
            is(r - MIB / 2, MIB / 2, region + round);
        }
    }
    /* A reserved range moves, and so does one in use. */
    char *q = reserve(8 * MIB, 0);
    char *moved = mremap(q, 8 * MIB, 16 * MIB, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    refused(moved + 12 * MIB, 1);
    OK(mprotect(moved + MIB, MIB, RW));
    fill(moved + MIB, MIB, 4);
    q = mremap(moved + MIB, MIB, 2 * MIB, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED);
    for (size_t i = 0; i < MIB; i += 8) CHECK(((unsigned long)(moved + MIB + i) & 2048) ? *(unsigned long *)(q + i) == 4 : *(unsigned long *)(q + i) == word(moved + MIB + i, 4));
    zero(q + MIB, MIB);
    OK(munmap(q, 2 * MIB));
    OK(munmap(moved, 16 * MIB));
    OK(munmap(p, 512 * MIB));
    refused(p, 0);
}

/* Aligned by reserving more and trimming; a page that is executed. */
static void v8_like(void) {
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */
    char *chunks[40];
    for (int i = 0; i < 40; i++) {
        size_t size = 256 << 10;
        char *p = reserve(2 * size - PAGE, MAP_NORESERVE);
        char *aligned = (char *)(((unsigned long)p + size - 1) & ~(size - 1));
        if (aligned > p) OK(munmap(p, aligned - p));
        char *end = p + 2 * size - PAGE;
        if (aligned + size < end) OK(munmap(aligned + size, end - aligned - size));
        OK(mprotect(aligned, size - PAGE, RW));
        fill(aligned, size - PAGE, i);
        refused(aligned + size - 1, 1);
        chunks[i] = aligned;
    }
    for (int i = 0; i < 40; i++) is(chunks[i], (256 << 10) - PAGE, i);
    char *exec = reserve(64 * MIB, MAP_NORESERVE);
    for (int i = 0; i < 8; i++) {
        char *page = exec + i * MIB;
        OK(mprotect(page, 4 * PAGE, RW));
        memcpy(page, code, sizeof code);
        page[1] = 10 + i;
        fill(page + PAGE, PAGE, i);
        OK(mprotect(page, 4 * PAGE, PROT_READ | PROT_EXEC));
        CHECK(((int (*)(void))page)() == 10 + i);
        is(page + PAGE, PAGE, i);
        refused(page, 1);
        OK(mprotect(page, 4 * PAGE, RW | PROT_EXEC));
        page[1] = 20 + i;
        CHECK(((int (*)(void))page)() == 20 + i);
    }
    for (int i = 0; i < 40; i++) {
        is(chunks[i], (256 << 10) - PAGE, i);
        OK(munmap(chunks[i], 256 << 10));
    }
    for (int i = 0; i < 8; i++) CHECK(((int (*)(void))(exec + i * MIB))() == 20 + i);
    OK(munmap(exec, 64 * MIB));
}

#define RANGES 10000
/* So many, then parts of each. */
static void many(void) {
    static char *ranges[RANGES];
    for (int i = 0; i < RANGES; i++) {
        ranges[i] = i % 2 ? reserve(16 * PAGE, 0) : mmap(NULL, 16 * PAGE, RW, ANON, -1, 0);
        CHECK(ranges[i] != MAP_FAILED);
        if (i % 2) OK(mprotect(ranges[i], 16 * PAGE, RW));
        *(int *)(ranges[i] + 3 * PAGE) = i;
        *(int *)(ranges[i] + 9 * PAGE) = ~i;
    }
    for (int i = 0; i < RANGES; i++) {
        OK(munmap(ranges[i] + 4 * PAGE, 2 * PAGE));
        if (i % 100 == 0) refused(ranges[i] + 5 * PAGE, i % 200 == 0);
    }
    for (int i = 0; i < RANGES; i++) {
        CHECK(*(int *)(ranges[i] + 3 * PAGE) == i);
        CHECK(*(int *)(ranges[i] + 9 * PAGE) == ~i);
        OK(munmap(ranges[i] + (i % 3 ? 0 : 6 * PAGE), (i % 3 ? 4 : 10) * PAGE));
    }
    for (int i = 0; i < RANGES; i++) {
        if (i % 3) CHECK(*(int *)(ranges[i] + 9 * PAGE) == ~i); else CHECK(*(int *)(ranges[i] + 3 * PAGE) == i);
        OK(munmap(ranges[i], 16 * PAGE));
    }
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    jemalloc_like();
    java_like();
    v8_like();
    many();
    puts("ok");
    return 0;
}
