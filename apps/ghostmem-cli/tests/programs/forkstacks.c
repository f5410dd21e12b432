/* Forks on stacks of the program's own, in memory from malloc and in mappings: by a child
 * of clone that has such a stack, by a coroutine, by a handler, by a thread. Parent and child each go on
 * on a stack of their own, whatever the other does to its. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define STACK (1 << 17)
#define DATA (1 << 19)

static unsigned char *data;
static volatile int ended;

static int good(void) {
    for (int at = 0; at < DATA; at += 4096) if (data[at] != (unsigned char)(at >> 12)) return 0;
    return 1;
}

/* Calls go down by some pages and come up again. */
static __attribute__((noinline)) int deeper(int levels) {
    volatile unsigned char frame[1500];
    for (unsigned at = 0; at < sizeof frame; at += 50) frame[at] = (unsigned char)(levels + at);
    int below = levels > 0 ? deeper(levels - 1) : good();
    for (unsigned at = 0; at < sizeof frame; at += 50) if (frame[at] != (unsigned char)(levels + at)) return 0;
    return below;
}

/* Whether the kernel keeps this thread's area of rseq(2), where libc has one. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
static int has_area(void) {
    if (!&__rseq_offset) return 1;
    return ((volatile int *)((char *)__builtin_thread_pointer() + __rseq_offset))[1] >= 0;
}

enum { BY_FORK, BY_CALL, BY_CLONE, BY_CLONE3, WAYS };
static pid_t fork_by(int way) {
    unsigned long words[11] = {0};
    words[4] = SIGCHLD;
    switch (way) {
    case BY_FORK: return fork();
    case BY_CALL: return (pid_t)syscall(SYS_fork);
    case BY_CLONE: return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    default: return (pid_t)syscall(SYS_clone3, words, 64);
    }
}

/* 0, or where it went wrong. Runs on the stack in question. */
static __attribute__((noinline)) int forks(int rounds, int ways) {
    volatile unsigned char mine[6000];
    pthread_mutex_t lock;
    pthread_mutexattr_t checks;
    pthread_mutexattr_init(&checks);
    pthread_mutexattr_settype(&checks, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&lock, &checks);
    int area = has_area();
    for (int round = 0; round < rounds; round++) {
        int way = round % ways;
        for (unsigned at = 0; at < sizeof mine; at++) mine[at] = (unsigned char)(at * 7 + round);
        evict();
        if (way == BY_FORK && pthread_mutex_lock(&lock)) return 10;
        pid_t pid = fork_by(way);
        if (pid < 0) return 11;
        if (has_area() != area) return pid ? 26 : 27;
        for (unsigned at = 0; at < sizeof mine; at++) if (mine[at] != (unsigned char)(at * 7 + round)) return pid ? 12 : 13;
        /* Each its own from here on, at the same time. */
        for (unsigned at = 0; at < sizeof mine; at++) mine[at] = pid ? 1 : 2;
        if (!deeper(12)) return pid ? 14 : 15;
        if (pid == 0) {
            alarm(100);
            /* The lock is another thread's here. */
            if (way == BY_FORK && pthread_mutex_unlock(&lock) != EPERM) _exit(21);
            evict();
            for (unsigned at = 0; at < sizeof mine; at++) if (mine[at] != 2) _exit(22);
            char *more = malloc(100000);
            memset(more, 3, 100000);
            free(more);
            /* And its own child, in turn. */
            if (round == 0) {
                int status;
                pid_t next = fork();
                if (next == 0) _exit(deeper(12) ? 7 : 23);
                if (waitpid(next, &status, 0) != next || !WIFEXITED(status) || WEXITSTATUS(status) != 7) _exit(24);
            }
            _exit(deeper(12) ? 5 : 25);
        }
        int status;
        if (waitpid(pid, &status, 0) != pid) return 16;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 5) { fprintf(stderr, "way %d: %x\n", way, status); return 17; }
        evict();
        for (unsigned at = 0; at < sizeof mine; at++) if (mine[at] != 1) return 18;
        /* It is who it was before. */
        if (way == BY_FORK && pthread_mutex_unlock(&lock)) return 19;
    }
    int status = system("exit 3");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 3) return 20;
    return 0;
}

static int as_child(void *rounds) {
    alarm(100);
    int wrong = forks(*(int *)rounds, WAYS);
    return wrong ? wrong : 100;
}

static ucontext_t outside, inside;
static volatile int answer;
static void as_coroutine(void) { answer = forks(WAYS, WAYS); }

/* By fork(3) alone: other ways copy what locks of libc's another thread holds. */
static void *as_thread(void *unused) {
    answer = forks(3, 1);
    ended = 1;
    return unused;
}

static void as_handler(int number) { answer = number == SIGUSR1 ? forks(WAYS, WAYS) : -2; }

/* A handler that interrupts the other. */
static volatile int beats;
static void beat(int number) {
    volatile unsigned char frame[5000];
    for (unsigned at = 0; at < sizeof frame; at++) frame[at] = (unsigned char)number;
    beats++;
}

static void by_handler(char *stack) {
    stack_t alternate = {.ss_sp = stack, .ss_size = STACK}, before;
    struct sigaction forker = {.sa_handler = as_handler, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct sigaction beater = {.sa_handler = beat, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    struct itimerspec often = {{0, 500000}, {0, 500000}};
    int timer;
    CHECK(sigaltstack(&alternate, &before) == 0);
    CHECK(sigaction(SIGUSR1, &forker, NULL) == 0 && sigaction(SIGUSR2, &beater, NULL) == 0);
    CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(syscall(SYS_timer_settime, timer, 0, &often, NULL) == 0);
    answer = -1;
    beats = 0;
    CHECK(raise(SIGUSR1) == 0);
    CHECK(syscall(SYS_timer_delete, timer) == 0);
    if (answer || !beats) { printf("wrong: handler %d, %d beats\n", answer, beats); exit(1); }
    CHECK(sigaltstack(&before, &alternate) == 0);
    CHECK(alternate.ss_sp == stack && alternate.ss_size == STACK);
}

/* Forks while others do on stacks of theirs. */
static void *beside(void *unused) {
    while (!ended) {
        int status;
        pid_t pid = fork();
        if (pid == 0) _exit(deeper(3) ? 0 : 1);
        if (pid > 0 && (waitpid(pid, &status, 0) != pid || status)) { printf("wrong: beside: %x\n", status); exit(1); }
    }
    return unused;
}

static void on(char *stack, int *rounds) {
    int status;
    evict();
    pid_t pid = clone(as_child, stack + STACK, SIGCHLD, rounds);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 100) { printf("wrong: child %x\n", status); exit(1); }

    CHECK(getcontext(&inside) == 0);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = STACK;
    inside.uc_link = &outside;
    makecontext(&inside, as_coroutine, 0);
    answer = -1;
    CHECK(swapcontext(&outside, &inside) == 0);
    if (answer) { printf("wrong: coroutine %d\n", answer); exit(1); }

    by_handler(stack);

    pthread_attr_t attributes;
    pthread_t thread, other;
    answer = -1;
    ended = 0;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstack(&attributes, stack, STACK) == 0);
    CHECK(pthread_create(&other, NULL, beside, NULL) == 0);
    CHECK(pthread_create(&thread, &attributes, as_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0 && pthread_join(other, NULL) == 0);
    if (answer) { printf("wrong: thread %d\n", answer); exit(1); }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    /* A hang is a failure. */
    alarm(100);
    prepare("2600000");
    data = ghost(DATA);
    for (int at = 0; at < DATA; at += 4096) data[at] = (unsigned char)(at >> 12);
    int *rounds = ghost(sizeof *rounds);
    *rounds = WAYS;
    char *stack = aligned_alloc(4096, STACK);
    CHECK(stack);
    on(stack, rounds);
    free(stack);
    stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED);
    on(stack, rounds);
    CHECK(munmap(stack, STACK) == 0);
    CHECK(good());
    puts("ok");
    return 0;
}
