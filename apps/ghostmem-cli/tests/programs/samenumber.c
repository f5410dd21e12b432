/* Children of vfork(2) in process namespaces of their own, which all have the number 1: what one
 * sets for its signals is neither the next one's nor its parent's.
 *
 * samenumber FOLDER [MIB] */
#define _GNU_SOURCE
#include "ghosts.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[64 << 10];

static int is_blocked(void) {
    sigset_t now;
    return sigprocmask(SIG_BLOCK, NULL, &now) == 0 && sigismember(&now, SIGSEGV);
}

static int sets(void *unused) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    if (getpid() != 1 || is_blocked() || sigprocmask(SIG_BLOCK, &set, NULL) != 0) _exit(3);
    signal(SIGSEGV, SIG_IGN);
    signal(SIGBUS, SIG_IGN);
    _exit(is_blocked() ? 0 : 4);
}

static int looks(void *unused) {
    if (getpid() != 1) _exit(3);
    _exit(is_blocked() ? 5 : 0);
}

static void child(int (*body)(void *)) {
    int flags = CLONE_VM | CLONE_VFORK | CLONE_NEWPID | SIGCHLD, status = -1;
    pid_t made = clone(body, stack + sizeof stack, flags, NULL);
    if (made < 0 && errno == EPERM) {
        /* Not for this user. */
        puts("ok");
        exit(0);
    }
    CHECK(made > 0 && waitpid(made, &status, 0) == made && status == 0);
}

int main(int argc, char **argv) {
    CHECK(argc > 1);
    prepare(argv[argc - 1]);
    for (int round = 0; round < 3; round++) {
        child(sets);
        child(looks);
        struct sigaction action;
        CHECK(sigaction(SIGSEGV, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
        CHECK(sigaction(SIGBUS, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
        CHECK(!is_blocked());
    }
    puts("ok");
    return 0;
}
