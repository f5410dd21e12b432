/* What a child gets of memory that its parent said something about: zeros, nothing, or a
 * copy; of mappings and of memory from malloc, put away or not. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 16
#define ALL (PAGES * PAGE)

static sigjmp_buf back;
static void caught(int number) { siglongjmp(back, number); }

/* What is at an address: its byte, or 256 where nothing is mapped. */
static int look(volatile unsigned char *p) {
    return sigsetjmp(back, 1) == 0 ? *p : 256;
}

/* Whether a child sees these, one for each page; and whether the parent's are there still. */
static void child_sees(unsigned char *p, const int *wanted) {
    pid_t child = fork();
    if (child == 0) {
        for (int page = 0; page < PAGES; page++) {
            int found = look(p + page * PAGE);
            if (found != wanted[page]) {
                fprintf(stderr, "page %d: %d for %d\n", page, found, wanted[page]);
                _exit(1);
            }
        }
        /* What is wiped is memory to use, and is wiped again for the next. */
        for (int page = 0; page < PAGES; page++)
            if (wanted[page] != 256) p[page * PAGE] = 77;
        pid_t next = fork();
        if (next == 0) {
            for (int page = 0; page < PAGES; page++) {
                int found = look(p + page * PAGE);
                if (found != (wanted[page] == 7 ? 77 : wanted[page])) _exit(2);
            }
            _exit(0);
        }
        int status;
        if (waitpid(next, &status, 0) != next || status != 0) _exit(3);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    for (int page = 0; page < PAGES; page++) CHECK(p[page * PAGE] == 7);
}

static void on(unsigned char *p) {
    int wanted[PAGES];
    memset(p, 7, ALL);
    for (int page = 0; page < PAGES; page++) wanted[page] = 7;
    child_sees(p, wanted);
    CHECK(madvise(p + PAGE, 4 * PAGE, MADV_WIPEONFORK) == 0);
    CHECK(madvise(p + 8 * PAGE, 4 * PAGE, MADV_DONTFORK) == 0);
    for (int page = 1; page < 5; page++) wanted[page] = 0;
    for (int page = 8; page < 12; page++) wanted[page] = 256;
    child_sees(p, wanted);
    evict();
    child_sees(p, wanted);
    CHECK(mlock(p + 4 * PAGE, PAGE) == 0);
    child_sees(p, wanted);
    CHECK(munlock(p + 4 * PAGE, PAGE) == 0);
    /* One does not take the other back. */
    CHECK(madvise(p + 2 * PAGE, PAGE, MADV_DOFORK) == 0);
    CHECK(madvise(p + 9 * PAGE, PAGE, MADV_KEEPONFORK) == 0);
    child_sees(p, wanted);
    CHECK(madvise(p + 2 * PAGE, PAGE, MADV_KEEPONFORK) == 0);
    CHECK(madvise(p + 9 * PAGE, PAGE, MADV_DOFORK) == 0);
    wanted[2] = wanted[9] = 7;
    child_sees(p, wanted);
    CHECK(madvise(p, ALL, MADV_KEEPONFORK) == 0 && madvise(p, ALL, MADV_DOFORK) == 0);
    for (int page = 0; page < PAGES; page++) wanted[page] = 7;
    child_sees(p, wanted);
    CHECK(madvise(p + 1, PAGE, MADV_WIPEONFORK) == -1 && errno == EINVAL);
    CHECK(madvise(p, PAGE, -1) == -1 && errno == EINVAL);
}

/* It stays with memory that becomes code, each page with its own. */
static void becomes_code(void) {
    int wanted[PAGES];
    unsigned char *p = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    memset(p, 7, ALL);
    for (int page = 0; page < PAGES; page++) wanted[page] = page < 3 || page > 9 ? 7 : page < 6 ? 0 : 256;
    CHECK(madvise(p + 3 * PAGE, 3 * PAGE, MADV_WIPEONFORK) == 0);
    CHECK(madvise(p + 6 * PAGE, 4 * PAGE, MADV_DONTFORK) == 0);
    evict();
    CHECK(mprotect(p, ALL, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    child_sees(p, wanted);
    CHECK(madvise(p, ALL, MADV_KEEPONFORK) == 0 && madvise(p, ALL, MADV_DOFORK) == 0);
    for (int page = 0; page < PAGES; page++) wanted[page] = 7;
    child_sees(p, wanted);
    CHECK(munmap(p, ALL) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    CHECK(signal(SIGSEGV, caught) != SIG_ERR);
    unsigned char *p = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    on(p);
    /* It goes with the memory, and away with it. */
    CHECK(madvise(p, ALL, MADV_WIPEONFORK) == 0);
    unsigned char *moved = mremap(p, ALL, 4 * ALL, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    int wanted[PAGES] = {0};
    child_sees(moved, wanted);
    CHECK(munmap(moved, 4 * ALL) == 0);
    becomes_code();
    p = aligned_alloc(PAGE, 2 * ALL);
    CHECK(p != NULL);
    on(p);
    free(p);
    puts("ok");
    return 0;
}
