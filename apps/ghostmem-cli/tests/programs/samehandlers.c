/* Children with their parent's handlers (CLONE_SIGHAND) that execute a program, where SIGSEGV and
 * SIGBUS are ignored: the parent's memory goes on coming back.
 *
 * samehandlers FOLDER MIB */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[64 << 10];

static int executes(void *program) {
    char *argv[] = {program, NULL};
    execv(program, argv);
    _exit(9);
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    signal(SIGSEGV, SIG_IGN);
    signal(SIGBUS, SIG_IGN);
    size_t bytes = 4 << 20;
    char *data = ghost(bytes);
    for (size_t at = 0; at < bytes; at++) data[at] = (char)(at * 3 + at / 4096);
    for (int round = 0; round < 4; round++) {
        int flags = CLONE_VM | CLONE_VFORK | CLONE_SIGHAND | SIGCHLD, status = -1;
        /* One that there is, and one that there is not. */
        char *program = round % 2 ? "/no/such/program" : "/bin/true";
        evict();
        pid_t child = clone(executes, stack + sizeof stack, flags, program);
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (round % 2 ? 9 : 0));
        for (size_t at = 0; at < bytes; at++) CHECK(data[at] == (char)(at * 3 + at / 4096));
        struct sigaction action;
        CHECK(sigaction(SIGSEGV, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
        CHECK(sigaction(SIGBUS, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    }
    puts("ok");
    return 0;
}
