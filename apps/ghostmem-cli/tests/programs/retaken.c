/* Memory that is mapped over again and again, by a file's pages and by fresh ones, while
 * others touch it: each touch finds the one or the other, as the kernel changes mappings in
 * one step. What comes last is memory like any other. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 32ul
#define ROUNDS 600
#define RW (PROT_READ | PROT_WRITE)

static unsigned char *area;
static int file;
static atomic_int stop;

static void *toucher(void *arg) {
    long id = (long)arg;
    unsigned seed = (unsigned)id * 7919;
    while (!stop) {
        seed = seed * 1103515245 + 12345;
        unsigned char *page = area + (seed >> 16) % PAGES * PAGE;
        unsigned char found = *(volatile unsigned char *)page;
        if (found != 0 && found != 'F') { printf("wrong: %d\n", found); exit(1); }
        /* A byte of its own, which goes with whatever mapping it met. */
        if (seed & 1) *(volatile unsigned char *)(page + 64 * id) = 1;
    }
    return NULL;
}

/* Pages of the area that are in memory. */
static int present(void) {
    int map = open("/proc/self/pagemap", O_RDONLY), count = 0;
    for (size_t page = 0; page < PAGES; page++) {
        uint64_t entry = 0;
        CHECK(pread(map, &entry, 8, ((uintptr_t)area / PAGE + page) * 8) == 8);
        count += entry >> 63;
    }
    close(map);
    return count;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare("2600000");
    char name[4096];
    snprintf(name, sizeof name, "%s/retaken.bytes", argv[1]);
    file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0);
    for (size_t page = 0; page < PAGES; page++) CHECK(pwrite(file, "F", 1, page * PAGE) == 1);
    CHECK(ftruncate(file, PAGES * PAGE) == 0);
    area = mmap(NULL, PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    pthread_t threads[2];
    for (long id = 0; id < 2; id++) CHECK(pthread_create(&threads[id], NULL, toucher, (void *)(id + 1)) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        CHECK(mmap(area, PAGES * PAGE, RW, MAP_PRIVATE | MAP_FIXED, file, 0) == area);
        CHECK(area[5 * PAGE] == 'F');
        CHECK(mmap(area, PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area);
        CHECK(area[5 * PAGE] == 0);
        if (round % 100 == 99) evict();
    }
    stop = 1;
    for (int id = 0; id < 2; id++) CHECK(pthread_join(threads[id], NULL) == 0);
    for (size_t page = 0; page < PAGES; page++) CHECK(area[page * PAGE] == 0);
    /* None is in memory that the engine does not know of: all can leave. */
    for (int turn = 0; turn < 3; turn++) madvise(area, PAGES * PAGE, MADV_PAGEOUT), evict();
    if (getenv("BACKEND")) CHECK(present() == 0);
    for (size_t page = 0; page < PAGES; page++) CHECK(area[page * PAGE] == 0);
    CHECK(munmap(area, PAGES * PAGE) == 0);
    puts("ok");
    return 0;
}
