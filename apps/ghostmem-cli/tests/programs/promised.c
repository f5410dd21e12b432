/* Maps memory without a reservation, as jemalloc and mimalloc do for all they hand out, and
 * writes all of it, from several threads: `fits MIB` what compresses well, beside MIB of
 * what compresses to half; `grows` what does not compress, until it is refused; `breaks` the
 * same, from what brk(2) gives. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define CHUNK (4 * MIB)
#define THREADS 4
#define MOST 64

static size_t chunks;
static int random_all;

static unsigned long next(unsigned long *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static char *map(size_t bytes, int flags) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

/* So many bytes of each page do not compress. */
static void fill(char *p, size_t bytes, size_t hard, unsigned long seed) {
    unsigned long state = seed | 1;
    for (size_t page = 0; page < bytes; page += 4096)
        for (size_t at = 0; at < 4096; at += 8)
            *(unsigned long *)(p + page + at) = at < hard ? next(&state) : seed + page;
}

static int is(const char *p, size_t bytes, size_t hard, unsigned long seed) {
    unsigned long state = seed | 1;
    for (size_t page = 0; page < bytes; page += 4096)
        for (size_t at = 0; at < 4096; at += 8)
            if (*(unsigned long *)(p + page + at) != (at < hard ? next(&state) : seed + page)) return 0;
    return 1;
}

static void *work(void *argument) {
    unsigned long seed = 1000 * (unsigned long)argument;
    char *mine[MOST];
    size_t count = 0;
    while (count < chunks) {
        char *p = map(CHUNK, MAP_NORESERVE);
        if (p == MAP_FAILED) {
            puts("refused");
            exit(0);
        }
        fill(p, CHUNK, random_all ? 4096 : 64, seed + count);
        mine[count++] = p;
    }
    for (size_t at = 0; at < count; at++)
        if (!is(mine[at], CHUNK, random_all ? 4096 : 64, seed + at)) return "wrong";
    return NULL;
}

static int breaks(void) {
    /* The heap is made with the first large block. */
    void *volatile block = malloc(MIB);
    if (block == NULL) return 3;
    for (size_t at = 0; at < 4 * MOST; at++) {
        char *p = sbrk(CHUNK);
        if (p == (void *)-1) {
            puts("refused");
            return 0;
        }
        fill(p, CHUNK / 4096 * 4096 - 4096, 4096, at + 1);
    }
    puts("all of it");
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "breaks") == 0) return breaks();
    size_t before = argc > 2 ? strtoul(argv[2], NULL, 10) * MIB : 0;
    random_all = argc > 1 && strcmp(argv[1], "grows") == 0;
    chunks = random_all ? MOST : before / CHUNK / THREADS;
    char *first = NULL;
    if (before > 0) {
        first = map(before, 0);
        if (first == MAP_FAILED) return 3;
        fill(first, before, 2048, 7);
    }
    pthread_t threads[THREADS];
    for (unsigned long at = 0; at < THREADS; at++) pthread_create(&threads[at], NULL, work, (void *)(at + 1));
    for (int at = 0; at < THREADS; at++) {
        void *wrong;
        pthread_join(threads[at], &wrong);
        if (wrong) return 4;
    }
    if (first && !is(first, before, 2048, 7)) return 5;
    puts("ok");
    return 0;
}
