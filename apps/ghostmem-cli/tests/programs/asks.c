/* Questions about memory, and the old members of the malloc family: mincore(2), mallopt(3),
 * malloc_info(3), cfree(3). */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dlfcn.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 64

/* Pages of a range that are in memory. The list of answers is from malloc, and put away. */
static int there(char *p, int pages) {
    static unsigned char *list;
    if (!list) list = ghost(PAGES);
    memset(list, 0x7e, PAGES);
    CHECK(mincore(p, pages * PAGE, list) == 0);
    int count = 0;
    for (int i = 0; i < PAGES; i++) {
        if (i >= pages) CHECK(list[i] == 0x7e);
        else count += list[i] & 1;
    }
    return count;
}

static void ask(char *p, int is_mapping) {
    unsigned char list[PAGES];
    memset(p, 3, PAGES * PAGE);
    evict();
    /* What was touched just now is there; others of the process may need it again. */
    int tries = 0;
    do {
        CHECK(tries++ < 1000);
        p[5 * PAGE]++;
    } while (there(p + 5 * PAGE, 1) != 1);
    CHECK(there(p, PAGES) >= 1);
    CHECK(madvise(p + 8 * PAGE, 4 * PAGE, MADV_DONTNEED) == 0);
    CHECK(there(p + 8 * PAGE, 4) == 0);
    /* As the kernel refuses it. */
    CHECK(mincore(p + 1, PAGE, list) == -1 && errno == EINVAL);
    CHECK(mincore(p, PAGE, (unsigned char *)16) == -1 && errno == EFAULT);
    CHECK(mincore(p, 0, list) == 0);
    CHECK(mincore(p, (size_t)-PAGE, list) == -1 && errno == ENOMEM);
    if (is_mapping) {
        CHECK(munmap(p + 20 * PAGE, 2 * PAGE) == 0);
        CHECK(mincore(p + 19 * PAGE, PAGE, list) == 0);
        CHECK(mincore(p + 20 * PAGE, PAGE, list) == -1 && errno == ENOMEM);
        CHECK(mincore(p, PAGES * PAGE, list) == -1 && errno == ENOMEM);
    }
    for (int i = 0; i < 20; i++) CHECK(p[i * PAGE + 9] == (i >= 8 && i < 12 ? 0 : 3));
}

static size_t said(const char *text, const char *before) {
    size_t sum = 0;
    /* The last one of a kind is the sum. */
    for (const char *at = text; (at = strstr(at, before)); at++) sum = strtoul(strstr(at, "size=\"") + 6, NULL, 10);
    return sum;
}

static size_t told(void) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    CHECK(stream && malloc_info(0, stream) == 0 && fclose(stream) == 0);
    size_t sum = said(text, "<total type=\"mmap\"") + said(text, "<system type=\"current\"");
    free(text);
    return sum;
}

static size_t in_use(void) { struct mallinfo2 m = mallinfo2(); return m.uordblks + m.hblkhd; }

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    char *mapping = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapping != MAP_FAILED);
    ask(mapping, 1);
    ask(ghost(PAGES * PAGE), 0);

    /* Blocks are what they were, whatever is set. */
    char *kept = malloc(5000), *large = malloc(300000);
    memset(kept, 8, 5000);
    memset(large, 9, 300000);
    CHECK(mallopt(M_MMAP_THRESHOLD, 128 << 10) == 1);
    CHECK(mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
    CHECK(mallopt(M_TOP_PAD, 64 << 10) == 1);
    CHECK(mallopt(M_MMAP_MAX, 1000) == 1);
    CHECK(mallopt(M_ARENA_MAX, 2) == 1);
    CHECK(mallopt(M_MXFAST, 100000000) == 0);
    evict();
    CHECK(kept = realloc(kept, 50000));
    CHECK(large = realloc(large, 3000000));
    for (int i = 0; i < 5000; i++) CHECK(kept[i] == 8);
    for (int i = 0; i < 300000; i++) CHECK(large[i] == 9);
    free(kept);
    free(large);

    size_t before = told();
    static char *blocks[20];
    for (int i = 0; i < 20; i++) memset(blocks[i] = malloc(1 << 20), i, 1 << 20);
    size_t now = told();
    CHECK(now >= 20 << 20 && now >= before);
    for (int i = 0; i < 20; i++) {
        CHECK(blocks[i][77777] == (char)i);
        free(blocks[i]);
    }

    /* By the name that old programs were linked with. */
    void (*old_free)(void *) = (void (*)(void *))dlvsym(RTLD_DEFAULT, "cfree", "GLIBC_2.2.5");
    if (!old_free) old_free = (void (*)(void *))dlsym(RTLD_DEFAULT, "cfree");
    if (old_free) {
        size_t used = in_use();
        for (int round = 0; round < 100; round++) {
            char *small = malloc(100), *big = malloc(200000);
            memset(small, 1, 100);
            memset(big, 2, 200000);
            old_free(small);
            old_free(big);
            old_free(NULL);
        }
        CHECK(in_use() < used + (10 << 20));
    }
    puts("ok");
    return 0;
}
