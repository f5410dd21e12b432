/* Pages without access, or that may only be read, are that in children, however these are
 * made, and in children of theirs. */
#define _GNU_SOURCE
#include "access.h"
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t make_child(int way) {
    switch (way) {
    case 0: return fork();
    case 1: return (pid_t)syscall(SYS_fork);
    case 2: return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    case 3: return _Fork();
    case 4: return (pid_t)syscall(SYS_clone, SIGCHLD | CLONE_FILES, 0, 0, 0, 0);
    default: {
        unsigned long args[8] = {0, 0, 0, 0, SIGCHLD, 0, 0, 0};
        return (pid_t)syscall(SYS_clone3, args, sizeof args);
    }
    }
}

#define AREA (256 * PAGE)
#define GUARD (100 * PAGE)
#define GUARDS (8 * PAGE)

static void area_is(char *p, int access) {
    has(p + GUARD, GUARDS, access);
    has(p + GUARD - 4 * PAGE, 4 * PAGE, RW);
    has(p + GUARD + GUARDS, 4 * PAGE, RW);
}
static void children(int access, int on_heap) {
    char *p = on_heap ? ghost(AREA) : mapping(AREA, 7);
    memset(p, 7, AREA);
    CHECK(mprotect(p + GUARD, GUARDS, access) == 0);
    for (int way = 0; way < 6; way++) {
        pid_t child = make_child(way);
        CHECK(child >= 0);
        if (child == 0) {
            area_is(p, access);
            evict();
            area_is(p, access);
            pid_t next = fork();
            if (next == 0) {
                area_is(p, access);
                _exit(0);
            }
            int status;
            CHECK(waitpid(next, &status, 0) == next && status == 0);
            /* It is the child's to open. */
            CHECK(mprotect(p + GUARD, GUARDS / 2, RW) == 0);
            has(p + GUARD, GUARDS / 2, RW);
            has(p + GUARD + GUARDS / 2, GUARDS / 2, access);
            CHECK(mprotect(p, AREA, RW) == 0);
            evict();
            is(p, 7, 0, AREA);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        area_is(p, access);
    }
    CHECK(mprotect(p, AREA, RW) == 0);
    is(p, 7, 0, AREA);
    if (on_heap) free(p);
    else CHECK(munmap(p, AREA) == 0);
}

int main(void) {
    catch_faults();
    /* More than stays resident, and little enough to be touched often. */
    prepare("7000000");
    const int accesses[] = {PROT_NONE, PROT_READ, RW};
    for (int at = 0; at < 3; at++) {
        children(accesses[at], 0);
        children(accesses[at], 1);
    }
    puts("ok");
    return 0;
}
