/* Limits on address space and data that a program sets on itself: blocks and mappings beyond
 * them are refused, what it has goes on, and what it frees it may have again. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define REFUSED(what) do { errno = 0; CHECK((what) && errno == ENOMEM); } while (0)

static int which;

static void allow(rlim_t bytes) {
    struct rlimit limit = {bytes, RLIM_INFINITY}, found;
    CHECK(setrlimit(which, &limit) == 0);
    CHECK(getrlimit(which, &found) == 0 && found.rlim_cur == bytes && found.rlim_max == RLIM_INFINITY);
}

/* As many blocks as there are, each with something in it; frees all of them. */
static int blocks(size_t bytes, int most) {
    static char *kept[200000];
    int count = 0;
    errno = 0;
    while (count < most && (kept[count] = malloc(bytes))) {
        kept[count][0] = (char)count;
        kept[count][bytes - 1] = (char)(count + 1);
        count++;
    }
    CHECK(count == most || errno == ENOMEM);
    for (int i = 0; i < count; i++) {
        CHECK(kept[i][0] == (char)i && kept[i][bytes - 1] == (char)(i + 1));
        free(kept[i]);
    }
    return count;
}

static void bounded(void) {
    char *grown = malloc(2 * MIB);
    CHECK(grown);
    memset(grown, 5, 2 * MIB);
    /* Most of what is there now is the 20 MB of `prepare`. */
    allow(100 * MIB);
    evict();
    REFUSED(malloc(200 * MIB) == NULL);
    REFUSED(calloc(200, MIB) == NULL);
    REFUSED(aligned_alloc(4096, 200 * MIB) == NULL);
    REFUSED(realloc(grown, 200 * MIB) == NULL);
    CHECK(grown[0] == 5 && grown[2 * MIB - 1] == 5);
    REFUSED(mmap(NULL, 200 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    for (int round = 0; round < 3; round++) {
        int count = blocks(MIB, 200);
        CHECK(count >= 40 && count <= 80);
    }
    /* A block counts as what was asked for. */
    int whole = blocks(MIB, 200), longer = blocks(MIB + (40 << 10), 200);
    CHECK(longer >= whole * 1024 / 1064 - 2 && longer <= whole);
    /* By small ones, too. */
    int count = blocks(1000, 200000);
    CHECK(count >= 40000 && count <= 84000);
    CHECK(blocks(1000, 30000) == 30000);
    /* What moves counts once: a block with a neighbour, and a mapping. */
    char *moved = malloc(45 * MIB), *beside = malloc(256 << 10);
    CHECK(moved && beside);
    moved[0] = 7;
    CHECK(moved = realloc(moved, 60 * MIB));
    CHECK(moved[0] == 7 && !moved[50 * MIB]);
    free(moved);
    moved = mmap(NULL, 45 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(moved != MAP_FAILED);
    moved[0] = 8;
    moved = mremap(moved, 45 * MIB, 60 * MIB, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved[0] == 8);
    REFUSED(mremap(moved, 60 * MIB, 160 * MIB, MREMAP_MAYMOVE) == MAP_FAILED);
    CHECK(munmap(moved, 60 * MIB) == 0);
    free(beside);
    /* A child has the same. */
    pid_t child = fork();
    if (child == 0) _exit(malloc(200 * MIB) == NULL && blocks(MIB, 200) <= 80 ? 3 : 4);
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 3 << 8);
    /* Less than there is: what is small is found in what is there. */
    allow(4096);
    REFUSED(malloc(60 * MIB) == NULL);
    CHECK(blocks(1000, 10) == 10);
    evict();
    /* And none any more. */
    allow(RLIM_INFINITY);
    CHECK(grown = realloc(grown, 200 * MIB));
    memset(grown + 199 * MIB, 6, MIB);
    CHECK(grown[0] == 5 && grown[2 * MIB - 1] == 5);
    free(grown);
    CHECK(blocks(MIB, 150) == 150);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    int limits[] = {RLIMIT_AS, RLIMIT_DATA};
    for (int i = 0; i < 2; i++) {
        which = limits[i];
        bounded();
    }
    /* What a child of vfork sets is the child's. */
    pid_t child = vfork();
    if (child == 0) {
        struct rlimit limit = {MIB, MIB};
        _exit(setrlimit(RLIMIT_AS, &limit) == 0 ? 3 : 4);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 3 << 8);
    void *block = malloc(50 * MIB);
    CHECK(block);
    free(block);
    puts("ok");
    return 0;
}
