/* A debugger's way to start a program: vfork, PTRACE_TRACEME, exec. The child reads
 * pages that are not in memory before and after it asks to be traced. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    volatile char *data = ghost(1 << 20);
    for (int i = 0; i < 1 << 20; i += 4096) data[i] = (char)(i >> 12);
    char **arguments = ghost(sizeof *arguments * 2);
    arguments[0] = strcpy(ghost(10), "true");
    for (int round = 0; round < 3; round++) {
        evict();
        pid_t child = vfork();
        if (child == 0) {
            if (data[100 << 12] != 100) _exit(1);
            if (ptrace(PTRACE_TRACEME, 0, 0, 0)) _exit(2);
            for (int i = 0; i < 1 << 20; i += 4096) if (data[i] != (char)(i >> 12)) _exit(3);
            execv("/bin/true", arguments);
            _exit(4);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) { printf("wrong: %x\n", status); return 1; }
        /* Signals that come are the child's, as a debugger passes them on. */
        do {
            int signal = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
            CHECK(ptrace(PTRACE_CONT, child, 0, signal) == 0);
            CHECK(waitpid(child, &status, 0) == child);
        } while (WIFSTOPPED(status));
        CHECK(status == 0);
    }
    /* An ordinary child is traced at once. */
    pid_t child = fork();
    if (child == 0) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); _exit(7); }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(ptrace(PTRACE_DETACH, child, 0, 0) == 0);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    printf("ok\n");
    return 0;
}
