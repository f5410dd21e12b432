/* What stays resident for a reason, and goes when the reason does: locks,
 * protections, stacks. Run with a limit of 16 MiB. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static sigjmp_buf back;
static void handler(int signal) { siglongjmp(back, signal); }
static int faults(volatile char *p) {
    if (sigsetjmp(back, 1)) return 1;
    *p = 1;
    return 0;
}

static void locks(void) {
    /* Each is a quarter of the limit, and none is unlocked. */
    for (int i = 0; i < 30; i++) {
        char *p = aligned_alloc(4096, 4 << 20);
        CHECK(mlock(p, 4 << 20) == 0);
        memset(p, i, 4 << 20);
        CHECK(madvise(p, 4096, MADV_DONTNEED) == -1 && errno == EINVAL);
        free(p);
    }
    /* Parts, and their ends. */
    char *p = ghost(64 << 12);
    CHECK(mlock(p + 100, 8 << 12) == 0 && munlock(p + (2 << 12), 2 << 12) == 0);
    CHECK(madvise(p + (2 << 12), 2 << 12, MADV_DONTNEED) == 0);
    CHECK(madvise(p + (1 << 12), 4096, MADV_DONTNEED) == -1 && errno == EINVAL);
    CHECK(munlock(p, 64 << 12) == 0 && madvise(p, 64 << 12, MADV_DONTNEED) == 0);
    free(p);
}

static void protections(void) {
    /* Every second page of a block: as many ranges as pages. */
    size_t pages = 3000;
    char *p = aligned_alloc(4096, pages << 12);
    memset(p, 7, pages << 12);
    for (size_t i = 0; i < pages; i += 2) CHECK(mprotect(p + (i << 12), 4096, PROT_NONE) == 0);
    for (size_t i = 0; i < pages; i += 97) CHECK(faults(p + (i << 12)) == (i % 2 == 0));
    /* Another protection for some, and none. */
    CHECK(mprotect(p, 64 << 12, PROT_READ) == 0 && p[0] == 7 && faults(p) && faults(p + 4096));
    CHECK(mprotect(p + 4096, 4096, PROT_READ | PROT_WRITE) == 0 && !faults(p + 4096));
    /* Given up while closed: zeros when opened. */
    CHECK(madvise(p, pages << 12, MADV_DONTNEED) == 0);
    CHECK(faults(p));
    CHECK(mprotect(p, pages << 12, PROT_READ | PROT_WRITE) == 0);
    for (size_t i = 0; i < pages << 12; i += 512) CHECK(p[i] == 0);
    memset(p, 9, pages << 12);
    evict();
    for (size_t i = 0; i < pages << 12; i += 512) CHECK(p[i] == 9);
    /* Freed while closed; the next block there is open. */
    for (int i = 0; i < 40; i++) {
        char *q = aligned_alloc(4096, 1 << 20);
        memset(q, i, 1 << 20);
        CHECK(mprotect(q + 8192, 1 << 19, PROT_NONE) == 0);
        free(q);
    }
    free(p);
}

static void *works(void *unused) {
    char b[3000];
    memset(b, 1, sizeof b);
    CHECK(b[7] == 1);
    return unused;
}

static void stacks(void) {
    /* Stacks in one block, and in small blocks, never freed one by one. */
    char *all = aligned_alloc(4096, 256 * 32768);
    for (int round = 0; round < 1500; round++) {
        char *small = round % 2 ? malloc(20000) : 0;
        char *base = small ? small : all + round / 2 % 256 * 32768;
        pthread_attr_t a;
        pthread_t t;
        pthread_attr_init(&a);
        CHECK(pthread_attr_setstack(&a, (void *)((size_t)base + 15 & ~15ul), small ? 19968 : 32768) == 0);
        CHECK(pthread_create(&t, &a, works, 0) == 0 && pthread_join(t, 0) == 0);
        if (round % 4 == 1) free(small);
    }
    free(all);
    /* Alternate stacks: another one in place of each, or none. */
    for (int i = 0; i < 600; i++) {
        stack_t s = {.ss_sp = malloc(60000), .ss_size = 60000}, none = {.ss_flags = SS_DISABLE}, old;
        CHECK(sigaltstack(&s, &old) == 0 && (i == 0 || (old.ss_flags & SS_DISABLE) == (i % 2 ? 0 : SS_DISABLE)));
        if (i % 2) CHECK(sigaltstack(&none, 0) == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    /* Natively, large blocks are to be mappings of their own always. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    prepare(argv[2]);
    struct sigaction action = {.sa_handler = handler};
    CHECK(sigaction(SIGSEGV, &action, 0) == 0);
    locks();
    protections();
    stacks();
    evict();
    printf("ok\n");
    return 0;
}
