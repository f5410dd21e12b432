/* Requests for more than an address space holds: each is refused at once. What was freed
 * before stays in memory for the next who asks, and no file is looked into. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <malloc.h>
#include <stdint.h>
#include <sys/resource.h>

#define ROUNDS 200
#define MOST 2000

static long faults(void) {
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_minflt;
}

/* Calls of read(2); 0 where the kernel does not count them. */
static long reads(void) {
    long count = 0;
    char line[100];
    FILE *file = fopen("/proc/self/io", "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) sscanf(line, "syscr: %ld", &count);
    fclose(file);
    return count;
}

static void *volatile freed;

/* The only block of its size. */
static void small(int by) {
    char *block = malloc(1000);
    CHECK(block);
    memset(block, by, 1000);
    freed = block;
    free(block);
    errno = 0;
}

#define REFUSED(what) do { small(round); CHECK((what) == NULL && errno == ENOMEM); } while (0)

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    evict();
    /* One that is looked up, and bounds nothing here. */
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    if (limit.rlim_cur > 1ul << 46) limit.rlim_cur = 1ul << 46;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    volatile size_t sizes[] = {1ul << 47, 1ul << 50, (1ul << 50) + 1, 1ul << 62, PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1, SIZE_MAX};
    char *kept = malloc(3000);
    CHECK(kept);
    memset(kept, 7, 3000);
    long faults_before = 0, reads_before = 0;
    for (int round = 0; round < ROUNDS; round++) {
        if (round == 1) {
            faults_before = faults();
            reads_before = reads();
        }
        for (size_t at = 0; at < sizeof sizes / sizeof *sizes; at++) {
            size_t size = sizes[at];
            void *block = NULL;
            REFUSED(malloc(size));
            REFUSED(calloc(1, size));
            REFUSED(memalign(64, size));
            REFUSED(aligned_alloc(4096, size & ~4095ul));
            REFUSED(realloc(kept, size));
            small(round);
            CHECK(posix_memalign(&block, 64, size) == ENOMEM && block == NULL);
        }
    }
    long more_faults = faults() - faults_before, more_reads = reads() - reads_before;
    if (more_faults > MOST || more_reads > MOST) { printf("wrong: %ld faults, %ld reads\n", more_faults, more_reads); return 1; }
    for (int at = 0; at < 3000; at++) CHECK(kept[at] == 7);
    puts("ok");
    return 0;
}
