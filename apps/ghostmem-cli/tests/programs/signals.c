/* A program's own handlers for SIGSEGV and SIGBUS, masks, alternate stacks,
 * stacks in heap memory, and threads with hardly any stack. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #what, errno); exit(1); } } while (0)

static char *pressure;
static size_t pressure_bytes;
static void evict(void) {
    for (int round = 0; round < 3; round++)
        for (size_t at = 0; at < pressure_bytes; at += 4096) pressure[at] += (char)at + 1;
}

static sigjmp_buf back;
static volatile int caught;
static void *volatile fault_address;
static char *kept;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    caught = signal;
    fault_address = info->si_addr;
    /* Ghost memory is usable in the program's handler. */
    evict();
    CHECK(kept[12345] == 'k');
    siglongjmp(back, 1);
}

static void null_checks(void) {
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGSEGV, &action, &old) == 0 && old.sa_handler == SIG_DFL);
    CHECK(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_sigaction == on_fault);
    for (int i = 0; i < 100; i++) {
        if (sigsetjmp(back, 1) == 0) {
            *(volatile int *)(uintptr_t)(16 + i) = 1;
            CHECK(!"reached");
        }
        CHECK(caught == SIGSEGV && fault_address == (void *)(uintptr_t)(16 + i));
        if (i % 10 == 0) evict();
        CHECK(kept[4096 * 3] == 'k');
    }
    /* A file shorter than its mapping: SIGBUS of the program's own. */
    char name[] = "/tmp/ghostmem-signals-XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0);
    char *map = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    if (sigsetjmp(back, 1) == 0) {
        (void)*(volatile char *)(map + 4096);
        CHECK(!"reached");
    }
    CHECK(caught == SIGBUS && fault_address == map + 4096);
    signal(SIGBUS, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
    evict();
    CHECK(kept[0] == 'k');
}

static volatile int alarms;
static void on_alarm(int signal) {
    (void)signal;
    alarms++;
    kept[4096] = 'k';
    CHECK(kept[8192] == 'k');
}

static void masks_and_stacks(void) {
    /* An alternate stack in heap memory. */
    stack_t mine = {.ss_sp = malloc(65536), .ss_size = 65536}, old;
    memset(mine.ss_sp, 0, 65536);
    CHECK(sigaltstack(NULL, &old) == 0 && (old.ss_flags & SS_DISABLE));
    CHECK(sigaltstack(&mine, NULL) == 0);
    CHECK(sigaltstack(NULL, &old) == 0 && old.ss_sp == mine.ss_sp && old.ss_size == 65536);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    action.sa_flags = SA_ONSTACK;
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int i = 0; i < 20; i++) { evict(); raise(SIGUSR1); }
    CHECK(alarms == 20);
    mine.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&mine, NULL) == 0);
    CHECK(sigaltstack(NULL, &old) == 0 && (old.ss_flags & SS_DISABLE));
    /* Everything blocked, and ghost memory in use. */
    sigset_t all, before, now;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
    evict();
    CHECK(pthread_sigmask(SIG_SETMASK, &before, &now) == 0 && sigismember(&now, SIGSEGV) && sigismember(&now, SIGBUS));
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && !sigismember(&now, SIGSEGV));
}

static void *small_stack(void *argument) {
    evict();
    CHECK(kept[(size_t)argument * 4096] == 'k');
    return argument;
}

static void threads(void) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 16384);
    pthread_t t[8];
    for (size_t i = 0; i < 8; i++) CHECK(pthread_create(&t[i], &attributes, small_stack, (void *)i) == 0);
    for (size_t i = 0; i < 8; i++) { void *result; CHECK(pthread_join(t[i], &result) == 0 && result == (void *)i); }
    /* A thread whose stack is heap memory. */
    char *stack = aligned_alloc(4096, 256 << 10);
    pthread_attr_setstack(&attributes, stack, 256 << 10);
    CHECK(pthread_create(&t[0], &attributes, small_stack, (void *)3) == 0);
    void *result;
    CHECK(pthread_join(t[0], &result) == 0 && result == (void *)3);
    pthread_attr_destroy(&attributes);
}

static ucontext_t main_context, coroutine;
static int steps;
static void body(void) {
    volatile char local[20000];
    for (int i = 0; i < 10; i++) {
        memset((void *)local, i, sizeof local);
        evict();
        steps += local[777] == i;
        swapcontext(&coroutine, &main_context);
    }
}

static void coroutines(void) {
    char *stack = malloc(128 << 10);
    getcontext(&coroutine);
    coroutine.uc_stack.ss_sp = stack;
    coroutine.uc_stack.ss_size = 128 << 10;
    coroutine.uc_link = &main_context;
    makecontext(&coroutine, body, 0);
    for (int i = 0; i < 10; i++) { swapcontext(&main_context, &coroutine); evict(); }
    CHECK(steps == 10);
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    pressure_bytes = (size_t)atol(argv[1]);
    pressure = malloc(pressure_bytes);
    kept = malloc(1 << 20);
    memset(kept, 'k', 1 << 20);
    if (argc == 3 && strcmp(argv[2], "crash") == 0) { evict(); *(volatile int *)8 = 1; }
    if (argc == 3 && strcmp(argv[2], "abort") == 0) { evict(); abort(); }
    if (argc == 3 && strcmp(argv[2], "double") == 0) { free(kept); free(kept); }
    null_checks();
    masks_and_stacks();
    threads();
    coroutines();
    printf("ok\n");
    return 0;
}
