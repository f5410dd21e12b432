/* Mappings of files, shared memory and code over pages that eight threads evict all the
 * while: each shows what it is, what is beside it stays, and a call that fails changes
 * nothing. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 256ul
#define THREADS 8
#define ROUNDS 60
#define RW (PROT_READ | PROT_WRITE)

static char *area;
static int file;
static atomic_int stop;
/* What each page shows: 0 zeros, 1..127 that byte and its number, 1000 + n page n of the file. */
static int shows[PAGES];

/* Loads and evictions of pages, whatever lies there: advice only, as stores are the main thread's. */
static void *evictor(void *arg) {
    unsigned seed = (unsigned)(long)arg;
    while (!stop) {
        seed = seed * 1103515245 + 12345;
        size_t page = seed / 65536 % PAGES, pages = 1 + seed / 16 % 16;
        if (page + pages > PAGES) pages = PAGES - page;
        madvise(area + page * PAGE, pages * PAGE, MADV_PAGEOUT);
        if (seed & 1) pressure[(seed >> 3) % pressure_bytes] += 1;
    }
    return NULL;
}
static unsigned long of_file(int page, int at) { return (unsigned long)page * 0x9E3779B97F4A7C15ul + at * 8191ul; }
static void check_page(size_t page) {
    unsigned long *w = (void *)(area + page * PAGE);
    for (int at = 0; at < 512; at++) {
        unsigned long should = shows[page] == 0 ? 0
            : shows[page] >= 1000 ? of_file(shows[page] - 1000, at)
            : (unsigned long)shows[page] << 32 | page << 12 | at;
        if (w[at] != should) { printf("wrong: page %zu word %d is %lx, not %lx\n", page, at, w[at], should); exit(1); }
    }
}
static void write_page(size_t page, int with) {
    unsigned long *w = (void *)(area + page * PAGE);
    for (int at = 0; at < 512; at++) w[at] = (unsigned long)with << 32 | page << 12 | at;
    shows[page] = with;
}
static void check_all(void) { for (size_t page = 0; page < PAGES; page++) check_page(page); }

static unsigned long seed = 88172645463325252ul;
static unsigned below(unsigned n) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return seed % n; }

static void round_of(int round, int flags) {
    size_t page = below(PAGES - 40), pages = 1 + below(32);
    char *p = area + page * PAGE;
    size_t bytes = pages * PAGE;
    int from = below(64);
    /* What fails changes nothing. */
    CHECK(mmap(p, bytes, RW, flags | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EBADF);
    CHECK(mmap(p, bytes, RW, flags | MAP_FIXED, file, 100) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(p, bytes, RW | PROT_EXEC, flags | MAP_FIXED, stop + 1000, 0) == MAP_FAILED && errno == EBADF);
    for (size_t i = 0; i < pages; i++) check_page(page + i);
    CHECK(mmap(p, bytes, PROT_READ, flags | MAP_FIXED, file, from * PAGE) == p);
    for (size_t i = 0; i < pages; i++) shows[page + i] = 1000 + from + (int)i;
    for (size_t i = 0; i < pages; i++) check_page(page + i);
    if (flags == MAP_SHARED) {
        /* It is the file, not a copy of it. */
        unsigned long word = ~0ul, was = of_file(from, 1);
        CHECK(pwrite(file, &word, 8, from * PAGE + 8) == 8);
        CHECK(((unsigned long *)p)[1] == word);
        CHECK(pwrite(file, &was, 8, from * PAGE + 8) == 8);
    }
    /* A part of it is anonymous again, a part is in use across both kinds. */
    size_t half = pages / 2;
    if (half > 0) {
        CHECK(mmap(p, half * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
        for (size_t i = 0; i < half; i++) shows[page + i] = 0;
        for (size_t i = 0; i < half; i++) check_page(page + i);
        CHECK(mprotect(p, bytes, PROT_READ) == 0);
        for (size_t i = 0; i < pages; i++) check_page(page + i);
        CHECK(mprotect(p, half * PAGE, RW) == 0);
        for (size_t i = 0; i < half; i++) write_page(page + i, 1 + below(120));
    }
    if (round % 3 == 0) {
        CHECK(munmap(p + half * PAGE, (pages - half) * PAGE) == 0);
        CHECK(mmap(p + half * PAGE, (pages - half) * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + half * PAGE);
        for (size_t i = half; i < pages; i++) shows[page + i] = 0;
    }
    /* Others become code, with what they hold. */
    size_t other = below(PAGES - 8);
    int ghost = 1;
    for (size_t i = 0; i < 4; i++) ghost &= shows[other + i] < 1000;
    if (ghost) {
        CHECK(mprotect(area + other * PAGE, 4 * PAGE, RW | PROT_EXEC) == 0);
        for (size_t i = 0; i < 4; i++) check_page(other + i);
        write_page(other + 1, 1 + below(120));
    }
    if (round % 10 == 9) {
        check_all();
        pid_t child = fork();
        if (child == 0) { check_all(); _exit(0); }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    char name[4096];
    snprintf(name, sizeof name, "%s/foreign.bytes", argv[1]);
    file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int page = 0; page < 128; page++) {
        unsigned long words[512];
        for (int at = 0; at < 512; at++) words[at] = of_file(page, at);
        CHECK(write(file, words, PAGE) == (ssize_t)PAGE);
    }
    area = mmap(NULL, PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    for (size_t page = 0; page < PAGES; page++) write_page(page, 1 + page % 100);
    pthread_t threads[THREADS];
    for (long t = 0; t < THREADS; t++) CHECK(pthread_create(&threads[t], NULL, evictor, (void *)(t + 1)) == 0);
    for (int round = 0; round < ROUNDS; round++) round_of(round, round % 2 ? MAP_SHARED : MAP_PRIVATE);
    stop = 1;
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
    check_all();
    /* Moved away, and back as ordinary pages; then all of it ends. */
    CHECK(mmap(area, 8 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == area);
    char *moved = mremap(area, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, 8 * PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    CHECK(moved != MAP_FAILED && ((unsigned long *)moved)[512 + 3] == of_file(1, 3));
    CHECK(mmap(area, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area);
    for (size_t page = 0; page < 8; page++) shows[page] = 0;
    check_all();
    CHECK(munmap(area, PAGES * PAGE) == 0);
    area = mmap(NULL, PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t page = 0; page < PAGES; page++) shows[page] = 0;
    check_all();
    for (size_t page = 0; page < PAGES; page++) write_page(page, 3);
    evict();
    check_all();
    puts("ok");
    return 0;
}
