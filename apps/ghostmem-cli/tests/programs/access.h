/* What access the pages of a range have, by trying. */
#include "ghosts.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)

static sigjmp_buf back;
static void caught(int number) { siglongjmp(back, number); }

static void catch_faults(void) {
    signal(SIGSEGV, caught);
    signal(SIGBUS, caught);
}

/* The signal of a load, of a store; 0: none. */
static int load(volatile char *p) {
    int number = sigsetjmp(back, 1);
    if (number == 0) (void)*p;
    return number;
}
static int store(volatile char *p) {
    int number = sigsetjmp(back, 1);
    if (number == 0) *p = *p;
    return number;
}
/* Every page of a range has this access. */
static void has(char *p, size_t bytes, int access) {
    for (size_t at = 7; at < bytes; at += PAGE) {
        CHECK(load(p + at) == (access == PROT_NONE ? SIGSEGV : 0));
        CHECK(store(p + at) == (access & PROT_WRITE && access & PROT_READ ? 0 : SIGSEGV));
    }
}
static char *mapping(size_t bytes, char with) {
    char *p = mmap(NULL, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    memset(p, with, bytes);
    return p;
}
static void is(const char *p, char what, size_t from, size_t to) {
    for (size_t at = from; at < to; at++) CHECK(p[at] == what);
}
