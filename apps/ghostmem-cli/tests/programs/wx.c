/* Memory that is to become code while the process has next to no mapping left: it does, or
 * it does not, and what it holds stays in either case, and so does what was said of it. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 24ul
#define CODE (PROT_READ | PROT_WRITE | PROT_EXEC)

static sigjmp_buf back;
static volatile int expected;
static void caught(int number, siginfo_t *info, void *context) {
    if (expected) siglongjmp(back, number);
    printf("wrong: signal %d at %p\n", number, info->si_addr);
    fflush(stdout);
    _exit(1);
}
static int store_fails(volatile unsigned char *p) {
    int failed = 1;
    expected = 1;
    if (sigsetjmp(back, 1) == 0) {
        *p = *p;
        failed = 0;
    }
    expected = 0;
    return failed;
}

static unsigned char *area;
static size_t parts;

/* One mapping more for each call, until there is none. */
static int split(void) {
    if (mprotect(area + (2 * parts + 1) * PAGE, PAGE, PROT_READ) != 0) return 0;
    return ++parts > 0;
}

static unsigned char value(size_t at) { return (unsigned char)(at / PAGE * 31 + at % 251 + 1); }
static void check(unsigned char *p, int round) {
    for (size_t page = 0; page < PAGES; page++)
        for (size_t at = page * PAGE; at < (page + 1) * PAGE; at += 61) {
            /* Every fifth page was never written. */
            unsigned char should = page % 5 == 4 ? 0 : value(at);
            if (p[at] != should) { printf("wrong: %d to spare: page %zu is %d, not %d\n", round, page, p[at], should); exit(1); }
        }
}

static void on(unsigned char *p, long most) {
    for (size_t at = 0; at < PAGES * PAGE; at++) if (at / PAGE % 5 != 4) p[at] = value(at);
    CHECK(mprotect(p + 2 * PAGE, PAGE, PROT_READ) == 0);
    CHECK(mlock(p + 6 * PAGE, PAGE) == 0);
    evict();
    area = mmap(NULL, (2 * most + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    CHECK(area != MAP_FAILED);
    parts = 0;
    while (parts < (size_t)most && split());
    int done = 0;
    for (int spare = 0; spare < 24 && !done; spare++) {
        done = mprotect(p, PAGES * PAGE, CODE) == 0;
        CHECK(done || errno == ENOMEM);
        check(p, spare);
        /* The kernel itself changes some of it at times. */
        if (!done && getenv("BACKEND")) {
            CHECK(store_fails(p + 2 * PAGE) && !store_fails(p + PAGE));
            CHECK(madvise(p + 6 * PAGE, PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
        }
        if (parts > 0 && munmap(area + (2 * --parts + 1) * PAGE, PAGE) != 0) break;
    }
    CHECK(munmap(area, (2 * most + 2) * PAGE) == 0);
    CHECK(mprotect(p, PAGES * PAGE, CODE) == 0);
    check(p, -1);
    CHECK(!store_fails(p + 2 * PAGE));
    evict();
    check(p, -2);
    CHECK(munlock(p, PAGES * PAGE) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    prepare("2600000");
    long most = 0;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
    CHECK(file && fscanf(file, "%ld", &most) == 1 && fclose(file) == 0);
    /* A machine that allows many more is not filled, nor where each page needs mappings. */
    const char *backend = getenv("BACKEND");
    if (most > 200000 || (backend && !strcmp(backend, "guard-mprotect"))) most = 16;
    unsigned char *p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    on(p, most);
    p = aligned_alloc(PAGE, PAGES * PAGE);
    CHECK(p);
    memset(p, 0, PAGES * PAGE);
    on(p, most);
    CHECK(mprotect(p, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
    free(p);
    puts("ok");
    return 0;
}
