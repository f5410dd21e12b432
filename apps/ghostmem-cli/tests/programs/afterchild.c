/* What a child sets for itself before it executes something is not its parent's: handlers,
 * the mask, and pages that come back, after each way to start one. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static volatile int calls;
static sigjmp_buf back;
static char *data;
static const size_t bytes = 1 << 20;

static void handler(int signal) { calls++; siglongjmp(back, signal); }

static void by_system(void) { CHECK(system("exit 3") == 3 << 8); }

static void by_popen(void) {
    char line[16];
    FILE *said = popen("echo said", "r");
    CHECK(said && fgets(line, sizeof line, said) && strcmp(line, "said\n") == 0);
    CHECK(pclose(said) == 0);
}

static void by_spawn(void) {
    char *command[] = {"true", NULL};
    posix_spawnattr_t attributes;
    sigset_t all, none;
    pid_t child;
    int status;
    sigfillset(&all);
    sigemptyset(&none);
    CHECK(posix_spawnattr_init(&attributes) == 0);
    CHECK(posix_spawnattr_setsigdefault(&attributes, &all) == 0);
    CHECK(posix_spawnattr_setsigmask(&attributes, &none) == 0);
    CHECK(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK) == 0);
    CHECK(posix_spawnp(&child, "true", NULL, &attributes, command, environ) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    posix_spawnattr_destroy(&attributes);
}

static void by_vfork(void) {
    int status;
    pid_t child = vfork();
    if (child == 0) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_IGN);
        execlp("true", "true", (char *)NULL);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* The child shares this memory, has no handler at all, and reads a page that is away. */
static void in_child(void) { _exit(data[bytes / 2] == (char)(bytes / 2 >> 12) ? 0 : 1); }

static void by_clone_without_handlers(void) {
    enum { SIZE = 64 << 10 };
    static char stack[SIZE] __attribute__((aligned(16)));
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, more[3];
    } how = {0};
    how.flags = CLONE_VM | CLONE_VFORK | UINT64_C(0x100000000);
    how.exit_signal = SIGCHLD;
    how.stack = (uintptr_t)stack;
    how.stack_size = SIZE - 64;
    *(void (**)(void))(stack + how.stack_size) = in_child;
    evict();
    long child = syscall(SYS_clone3, &how, sizeof how);
    /* Libraries take this for an answer and use the older call. */
    if (child < 0) { CHECK(errno == ENOSYS || errno == EINVAL); return; }
    int status;
    CHECK(waitpid((pid_t)child, &status, 0) == child && status == 0);
}

static void is_as_before(const char *after) {
    struct sigaction now;
    sigset_t mask;
    for (int signal = SIGSEGV;; signal = SIGBUS) {
        CHECK(sigaction(signal, NULL, &now) == 0);
        if (now.sa_handler != handler) printf("after %s, signal %d\n", after, signal);
        CHECK(now.sa_handler == handler);
        if (signal == SIGBUS) break;
    }
    CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0);
    CHECK(sigismember(&mask, SIGUSR2) == 1 && sigismember(&mask, SIGUSR1) == 0 && sigismember(&mask, SIGSEGV) == 0);
    evict();
    for (size_t at = 0; at < bytes; at += 4096) CHECK(data[at] == (char)(at >> 12));
    int before = calls;
    if (sigsetjmp(back, 1) == 0) *(volatile char *)8 = 1;
    CHECK(calls == before + 1);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    data = ghost(bytes);
    for (size_t at = 0; at < bytes; at += 4096) data[at] = (char)(at >> 12);
    struct sigaction action = {.sa_handler = handler};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    CHECK(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
    by_system(); is_as_before("system");
    by_popen(); is_as_before("popen");
    by_spawn(); is_as_before("posix_spawn");
    by_vfork(); is_as_before("vfork");
    by_clone_without_handlers(); is_as_before("clone3");
    printf("ok\n");
    return 0;
}
