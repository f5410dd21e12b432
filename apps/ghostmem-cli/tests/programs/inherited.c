/* What a program that is executed gets: signals that are blocked or ignored, those of faults
 * among them, by each way to make a child; children of clone3 without the parent's handlers,
 * and of structures longer than any kernel's; and arguments in heap memory under a limit on
 * address space that the process has set itself. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *self;
enum { SIGNALS = 4 };
static const int signals[SIGNALS] = {SIGSEGV, SIGBUS, SIGUSR1, SIGUSR2};

/* One digit for each signal: 1 blocked, 2 ignored. */
static int has(int which) {
    sigset_t mask;
    struct sigaction action;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    int sum = 0;
    for (int i = 0; i < SIGNALS; i++) {
        CHECK(sigaction(signals[i], NULL, &action) == 0);
        sum |= (sigismember(&mask, signals[i]) ? 1 : 0) << 2 * i;
        sum |= (action.sa_handler == SIG_IGN ? 2 : 0) << 2 * i;
    }
    return sum == which ? 5 : 6;
}

static int ended(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static char **arguments(int which) {
    char **list = ghost(4096);
    char *text = ghost(4096);
    sprintf(text, "%d", which);
    list[0] = self;
    list[1] = text;
    return list;
}

static void handler(int signal) { (void)signal; }

static void each_way(int which) {
    char **list = arguments(which);
    evict();
    pid_t child = fork();
    if (child == 0) { execv(self, list); _exit(9); }
    CHECK(ended(child) == 5);
    evict();
    child = vfork();
    if (child == 0) { execv(self, list); _exit(9); }
    CHECK(ended(child) == 5);
    evict();
    CHECK(posix_spawn(&child, self, NULL, NULL, list, environ) == 0 && ended(child) == 5);
    /* A child that could not be executed leaves all as it was. */
    child = fork();
    if (child == 0) {
        execv("/nonexistent", list);
        evict();
        _exit(has(which));
    }
    CHECK(ended(child) == 5);
    CHECK(has(which) == 5);
    free(list[1]);
    free(list);
}

static void *on_its_stack(void *which) {
    each_way(*(int *)which);
    return NULL;
}

/* The same on a thread whose stack is heap memory. */
static void on_heap_stack(int which) {
    const size_t bytes = 256 << 10;
    char *stack = ghost(bytes);
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstack(&attributes, stack, bytes) == 0);
    CHECK(pthread_create(&thread, &attributes, on_its_stack, &which) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    free(stack);
}

/* The attributes of posix_spawn, on top of what the parent has. */
static void spawned(void) {
    posix_spawnattr_t *attributes = ghost(4096);
    sigset_t *set = ghost(4096);
    pid_t child;
    char **list = arguments(1 | 1 << 4);
    CHECK(posix_spawnattr_init(attributes) == 0);
    sigemptyset(set);
    sigaddset(set, SIGSEGV);
    sigaddset(set, SIGUSR1);
    posix_spawnattr_setsigmask(attributes, set);
    sigemptyset(set);
    sigaddset(set, SIGBUS);
    posix_spawnattr_setsigdefault(attributes, set);
    posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    signal(SIGBUS, SIG_IGN);
    signal(SIGSEGV, handler);
    evict();
    CHECK(posix_spawn(&child, self, NULL, attributes, list, environ) == 0 && ended(child) == 5);
    struct sigaction action;
    CHECK(sigaction(SIGSEGV, NULL, &action) == 0 && action.sa_handler == handler);
    CHECK(sigaction(SIGBUS, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    CHECK(has(2 << 2) == 5);
    /* What a child of vfork sets for itself. */
    sprintf(list[1], "%d", 2 | 1 << 2);
    child = vfork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        signal(SIGSEGV, SIG_IGN);
        sigemptyset(set);
        sigaddset(set, SIGBUS);
        sigprocmask(SIG_BLOCK, set, NULL);
        execv(self, list);
        _exit(9);
    }
    CHECK(ended(child) == 5 && has(2 << 2) == 5);
    signal(SIGBUS, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
}

static void by_clone3(char *data) {
    for (int kind = 0; kind < 4; kind++) {
        char *long_one = ghost(8192);
        struct clone_args *asked = (struct clone_args *)long_one;
        asked->exit_signal = SIGCHLD;
        size_t bytes = sizeof *asked;
        if (kind == 1) asked->flags = CLONE_CLEAR_SIGHAND;
        if (kind == 2) bytes = 4096;
        if (kind == 3) { bytes = 4096; long_one[4000] = 1; }
        signal(SIGSEGV, handler);
        signal(SIGUSR1, handler);
        signal(SIGUSR2, SIG_IGN);
        evict();
        errno = 0;
        long child = syscall(SYS_clone3, asked, bytes);
        if (child == 0) {
            if (data[12345] != 'd') _exit(6);
            struct sigaction fault, own;
            sigaction(SIGSEGV, NULL, &fault);
            sigaction(SIGUSR1, NULL, &own);
            int kept = fault.sa_handler == handler && own.sa_handler == handler;
            int cleared = fault.sa_handler == SIG_DFL && own.sa_handler == SIG_DFL;
            sigaction(SIGUSR2, NULL, &own);
            if (own.sa_handler != SIG_IGN) _exit(7);
            evict();
            _exit((kind == 1 ? cleared : kept) ? 5 : 8);
        }
        if (kind == 3) CHECK(child == -1 && errno == E2BIG);
        else CHECK(ended((pid_t)child) == 5);
        free(long_one);
    }
    if (geteuid() == 0) {
        /* A number that the caller chose, which stands in the heap. */
        struct clone_args *asked = ghost(4096);
        pid_t *chosen = ghost(4096);
        *chosen = 32011;
        asked->exit_signal = SIGCHLD;
        asked->set_tid = (unsigned long)chosen;
        asked->set_tid_size = 1;
        evict();
        errno = 0;
        long child = syscall(SYS_clone3, asked, sizeof *asked);
        if (child == 0) _exit(getpid() == 32011 ? 5 : 6);
        if (child > 0) CHECK(ended((pid_t)child) == 5);
        else CHECK(errno == EEXIST || errno == EPERM);
    }
    signal(SIGSEGV, SIG_DFL);
    signal(SIGUSR1, SIG_DFL);
    signal(SIGUSR2, SIG_DFL);
}

static void under_a_limit(void) {
    pid_t child = fork();
    if (child == 0) {
        char **list = arguments(0);
        struct rlimit limit = {1ul << 30, 1ul << 30};
        CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        execv(self, list);
        _exit(9);
    }
    CHECK(ended(child) == 5);
}

int main(int argc, char **argv) {
    if (argc == 2) return has(atoi(argv[1]));
    CHECK(argc == 3);
    prepare(argv[2]);
    char *data = ghost(1 << 20);
    data[12345] = 'd';
    self = ghost(4096);
    CHECK(readlink("/proc/self/exe", self, 4000) > 0);
    for (int which = 0; which < SIGNALS; which++) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, signals[which]);
        sigprocmask(SIG_BLOCK, &one, NULL);
        each_way(1 << 2 * which);
        on_heap_stack(1 << 2 * which);
        sigprocmask(SIG_UNBLOCK, &one, NULL);
        signal(signals[which], SIG_IGN);
        each_way(2 << 2 * which);
        signal(signals[which], SIG_DFL);
    }
    spawned();
    by_clone3(data);
    under_a_limit();
    CHECK(data[12345] == 'd');
    puts("ok");
    return 0;
}
