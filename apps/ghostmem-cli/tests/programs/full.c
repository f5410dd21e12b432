/* A mapping moves where there is no memory for its copy: it stays, with all that it holds, and
 * with what a thread stores meanwhile. Natively it moves. */
#define _GNU_SOURCE
#include "access.h"
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { PAGES = 7680, WORDS = 512 };

static unsigned long *area;
static atomic_int stop;
static unsigned long last[PAGES];

static unsigned long next(unsigned long x) {
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ x << 17;
}

/* Stores to the first word of pages. */
static void *writer(void *arg) {
    (void)arg;
    for (unsigned long value = 1; !stop; value++) {
        unsigned page = value * 7919 % PAGES;
        ((volatile unsigned long *)area)[page * WORDS] = value;
        last[page] = value;
    }
    return NULL;
}

int main(void) {
    const size_t bytes = PAGES * PAGE;
    int is_bounded = getenv("BACKEND") != NULL;
    area = mmap(NULL, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    /* What nobody compresses. */
    unsigned long x = 88172645463325252ul;
    for (size_t at = 0; at < bytes / 8; at++) area[at] = at % WORDS ? (x = next(x)) : 0;
    pthread_t thread;
    if (is_bounded) {
        CHECK(pthread_create(&thread, NULL, writer, NULL) == 0);
        usleep(20000);
    }
    unsigned long *to = mremap(area, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK((to == MAP_FAILED) == is_bounded);
    if (is_bounded) {
        CHECK(errno == ENOMEM);
        usleep(20000);
        stop = 1;
        CHECK(pthread_join(thread, NULL) == 0);
        to = area;
    }
    x = 88172645463325252ul;
    for (size_t at = 0; at < bytes / 8; at++) CHECK(to[at] == (at % WORDS ? (x = next(x)) : last[at / WORDS]));
    puts("ok");
    return 0;
}
