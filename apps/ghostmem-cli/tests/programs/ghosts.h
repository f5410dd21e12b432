/* Shared by the programs beside it: blocks with pages of their own, and a way
 * to push them all out of memory. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #what, errno); exit(1); } } while (0)

static char *pressure;
static size_t pressure_bytes;

static void prepare(const char *bytes) {
    pressure_bytes = (size_t)atol(bytes);
    pressure = malloc(pressure_bytes);
    CHECK(pressure);
}

/* Touches more than the limit. */
static void evict(void) {
    for (int round = 0; round < 2; round++)
        for (size_t at = 0; at < pressure_bytes; at += 4096) pressure[at] += (char)at + 1;
}

static void *ghost(size_t bytes) {
    char *p = aligned_alloc(4096, (bytes < 40000 ? 40000 : bytes) + 4095 & ~4095ul);
    CHECK(p);
    memset(p, 0, bytes);
    return p;
}
