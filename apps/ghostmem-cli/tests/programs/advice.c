/* What a program says about its memory gets the kernel's answer: the same calls on a
 * mapping and on memory from malloc, and what touches come to afterwards. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 16
#define INSTALL 102 /* MADV_GUARD_INSTALL, MADV_GUARD_REMOVE: since 6.13 */
#define REMOVE 103
#define LOCKED_TOO 24 /* MADV_DONTNEED_LOCKED: since 5.18 */

static sigjmp_buf back;
static void caught(int number) { siglongjmp(back, number); }

/* The signal that a load, or a store, at an address ends in; 0: none. */
static int load(volatile char *p) {
    int number = sigsetjmp(back, 1);
    if (number == 0) (void)*p;
    return number;
}
static int store(volatile char *p) {
    int number = sigsetjmp(back, 1);
    if (number == 0) *p = 9;
    return number;
}

static long answers[2][400];
static const char *names[400];
static int lines[400], count, which;

static void noted(const char *what, int line, long answer) {
    long value = answer == -1 ? -(long)errno : answer;
    CHECK(count < 400);
    names[count] = what;
    lines[count] = line;
    answers[which][count++] = value;
}
#define SAME(what) do { errno = 0; noted(#what, __LINE__, (long)(what)); } while (0)

static void ask(char *p) {
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    memset(p, 7, PAGES * PAGE);
    evict();

    SAME(syscall(SYS_mlock2, p, PAGE, 1));
    SAME(syscall(SYS_mlock2, p, PAGE, 2));
    SAME(syscall(SYS_mlock2, p, PAGE, 77));
    SAME(munlock(p, PAGES * PAGE));

    for (int advice = 0; advice < 130; advice++) {
        /* Those that poison memory, or tell of a child that there is none of here. */
        if (advice == 100 || advice == 101 || advice == MADV_DONTFORK || advice == MADV_WIPEONFORK || advice == MADV_KEEPONFORK) continue;
        if (advice == INSTALL || advice == REMOVE) continue;
        SAME(madvise(p + 1, PAGE, advice));
        SAME(madvise(p, 0, advice));
    }
    SAME(madvise(p, PAGE, MADV_REMOVE));
    /* A key that nobody has changes nothing. */
    SAME(syscall(SYS_pkey_mprotect, p, PAGE, PROT_READ, 15));
    SAME(store(p));
    /* What has no access cannot be brought in for it. */
    for (int access = 0; access < 4; access++) {
        SAME(mprotect(p + PAGE, PAGE, access & (PROT_READ | PROT_WRITE)));
        SAME(madvise(p, 3 * PAGE, 22 /* MADV_POPULATE_READ */));
        SAME(madvise(p, 3 * PAGE, 23 /* MADV_POPULATE_WRITE */));
    }
    SAME(p[0]);
    SAME(madvise(p, (size_t)-PAGE, MADV_DONTNEED));
    SAME(madvise(p, PAGE, 9999));

    SAME(msync(p, PAGE, MS_SYNC));
    SAME(msync(p, PAGE, MS_ASYNC));
    SAME(msync(p, PAGE, MS_SYNC | MS_ASYNC));
    SAME(msync(p, PAGE, 64));
    SAME(msync(p + 1, PAGE, MS_SYNC));

    /* A guard: what is there is gone, touches and calls fail, until it is removed. */
    SAME(madvise(p + 2 * PAGE, 2 * PAGE, INSTALL));
    SAME(load(p + 2 * PAGE));
    SAME(store(p + 3 * PAGE));
    SAME(write(pipes[1], p + 2 * PAGE, 10));
    SAME(load(p + 4 * PAGE));
    SAME(p[2 * PAGE - 1]);
    evict();
    SAME(madvise(p + 2 * PAGE, 2 * PAGE, INSTALL));
    SAME(madvise(p + 2 * PAGE, 2 * PAGE, MADV_DONTNEED));
    SAME(load(p + 3 * PAGE));
    SAME(madvise(p, PAGES * PAGE, REMOVE));
    SAME(load(p + 2 * PAGE));
    SAME(p[2 * PAGE]);
    SAME(p[4 * PAGE]);
    SAME(store(p + 3 * PAGE));
    evict();
    SAME(p[3 * PAGE]);
    /* What can only be read stays so when guards are removed. */
    SAME(mprotect(p + 5 * PAGE, PAGE, PROT_READ));
    SAME(madvise(p, PAGES * PAGE, REMOVE));
    SAME(store(p + 5 * PAGE));
    SAME(mprotect(p + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE));
    SAME(store(p + 5 * PAGE));

    /* What is locked is forgotten by the one advice that says so, and stays locked. */
    memset(p + 6 * PAGE, 5, 4 * PAGE);
    SAME(mlock(p + 6 * PAGE, 2 * PAGE));
    SAME(madvise(p + 6 * PAGE, PAGE, MADV_DONTNEED));
    SAME(madvise(p + 6 * PAGE, PAGE, MADV_FREE));
    SAME(p[6 * PAGE]);
    SAME(madvise(p + 6 * PAGE, 3 * PAGE, LOCKED_TOO));
    for (int page = 6; page < 10; page++) SAME(p[page * PAGE + 77]);
    SAME(store(p + 6 * PAGE));
    evict();
    SAME(p[6 * PAGE]);
    SAME(madvise(p + 6 * PAGE, PAGE, MADV_DONTNEED));
    SAME(madvise(p + 7 * PAGE, 2 * PAGE, LOCKED_TOO));
    SAME(munlock(p + 6 * PAGE, 2 * PAGE));
    SAME(madvise(p + 6 * PAGE, PAGE, MADV_DONTNEED));
    SAME(p[6 * PAGE]);
    /* What can only be read is forgotten, too, and can only be read. */
    SAME(mprotect(p + 9 * PAGE, PAGE, PROT_READ));
    SAME(madvise(p + 9 * PAGE, PAGE, LOCKED_TOO));
    SAME(p[9 * PAGE]);
    SAME(store(p + 9 * PAGE));
    SAME(mprotect(p + 9 * PAGE, PAGE, PROT_READ | PROT_WRITE));
    close(pipes[0]);
    close(pipes[1]);
}

int main(int argc, char **argv) {
    (void)argc;
    struct sigaction action = {.sa_handler = caught};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    prepare(argv[2]);
    /* Under run, one that stays the kernel's. */
    char *mapping = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    CHECK(mapping != MAP_FAILED);
    ask(mapping);
    int asked = count;
    count = 0, which = 1;
    ask(ghost(PAGES * PAGE));
    CHECK(count == asked);
    for (int i = 0; i < count; i++) {
        if (answers[0][i] == answers[1][i]) continue;
        printf("wrong: line %d: %s is %ld of a mapping and %ld of malloc's\n", lines[i], names[i], answers[0][i], answers[1][i]);
        return 1;
    }
    /* What is locked can never leave: all or nothing is not to be had, but what the
     * flags are is known. */
    CHECK(mlockall(0) == -1 && errno == EINVAL);
    CHECK(mlockall(64) == -1 && errno == EINVAL);
    CHECK(mlockall(MCL_ONFAULT) == -1 && errno == EINVAL);
    puts("ok");
    return 0;
}
