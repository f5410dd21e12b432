/* SIGSEGV and SIGBUS that are sent to a process all of whose threads have them blocked: they are
 * the process's. A thread that waits for one gets it, with what came along; every thread sees it
 * pending; the first that blocks it no longer runs the handler. One sent to a thread is its own. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 60 };
static sigset_t ours;
static volatile int got[4], value[4], code[4], handled_by, stop;
static pid_t ids[4];
static pthread_barrier_t ready, go;

static void *waits(void *which) {
    long i = (long)which;
    siginfo_t *info = ghost(sizeof *info);
    ids[i] = gettid();
    pthread_barrier_wait(&ready);
    while (!stop) {
        struct timespec moment = {0, 20000000};
        int signal = sigtimedwait(&ours, info, &moment);
        if (signal < 0) continue;
        value[i] = info->si_value.sival_int;
        code[i] = info->si_code;
        __atomic_add_fetch(&got[i], 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

/* Waits without a limit: one that comes while it is on its way into the call is not lost. */
enum { CLOSE = 60000 };
static volatile int taken;
static void *waits_for_all(void *unused) {
    (void)unused;
    while (taken < CLOSE) {
        siginfo_t info;
        if (sigwaitinfo(&ours, &info) < 0) continue;
        CHECK(info.si_code == (taken % 2 ? SI_QUEUE : SI_USER));
        __atomic_add_fetch(&taken, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void sent_at_once(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, waits_for_all, NULL) == 0);
    for (int i = 0; i < CLOSE; i++) {
        union sigval with = {.sival_int = i};
        if (i % 2) CHECK(sigqueue(getpid(), SIGSEGV, with) == 0);
        else CHECK(kill(getpid(), SIGSEGV) == 0);
        while (taken <= i) sched_yield();
        for (volatile int k = 0; k < i % 500; k++) {}
    }
    CHECK(pthread_join(thread, NULL) == 0 && handled_by == 0);
}

static int waiting(int signal) {
    sigset_t set;
    CHECK(sigpending(&set) == 0);
    return sigismember(&set, signal);
}

static void *looks(void *expected) {
    return (void *)(long)(waiting(SIGSEGV) + 2 * waiting(SIGBUS));
}

static void handles(int signal) { handled_by = gettid(); (void)signal; }

static void *opens(void *unused) {
    (void)unused;
    CHECK(pthread_sigmask(SIG_UNBLOCK, &ours, NULL) == 0);
    return (void *)(long)(handled_by == gettid());
}

static long in_thread(void *(*body)(void *)) {
    pthread_t thread;
    void *result;
    CHECK(pthread_create(&thread, NULL, body, NULL) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    return (long)result;
}

static void until(volatile int *count, int most) {
    for (int i = 0; i < 20000 && *count < most; i++) usleep(1000);
    CHECK(*count == most);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(200);
    prepare(argv[2]);
    sigemptyset(&ours);
    sigaddset(&ours, SIGSEGV);
    sigaddset(&ours, SIGBUS);
    CHECK(sigprocmask(SIG_BLOCK, &ours, NULL) == 0);
    struct sigaction act = {.sa_handler = handles};
    CHECK(sigaction(SIGSEGV, &act, NULL) == 0 && sigaction(SIGBUS, &act, NULL) == 0);
    pthread_barrier_init(&ready, NULL, 2);

    /* One thread waits. */
    pthread_t one, other;
    CHECK(pthread_create(&one, NULL, waits, (void *)0) == 0);
    pthread_barrier_wait(&ready);
    for (int i = 0; i < ROUNDS; i++) {
        union sigval with = {.sival_int = i};
        int signal = i % 2 ? SIGSEGV : SIGBUS;
        if (i % 3) CHECK(sigqueue(getpid(), signal, with) == 0);
        else CHECK(kill(getpid(), signal) == 0);
        if (i % 10 == 0) evict();
        until(&got[0], i + 1);
        CHECK(code[0] == (i % 3 ? SI_QUEUE : SI_USER) && (i % 3 == 0 || value[0] == i));
        CHECK(!waiting(signal) && handled_by == 0);
    }
    /* Two wait: one of them gets it. */
    CHECK(pthread_create(&other, NULL, waits, (void *)1) == 0);
    pthread_barrier_wait(&ready);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(kill(getpid(), SIGSEGV) == 0);
        for (int k = 0; k < 20000 && got[0] + got[1] < ROUNDS + i + 1; k++) usleep(1000);
        CHECK(got[0] + got[1] == ROUNDS + i + 1);
    }
    stop = 1;
    CHECK(pthread_join(one, NULL) == 0 && pthread_join(other, NULL) == 0);
    CHECK(got[0] + got[1] == 2 * ROUNDS && handled_by == 0);

    sent_at_once();

    /* What is queued for a thread is that thread's, as is what a timer sends to one. */
    union sigval with = {.sival_int = 5};
    CHECK(pthread_sigqueue(pthread_self(), SIGSEGV, with) == 0);
    CHECK(waiting(SIGSEGV) && in_thread(looks) == 0);
    siginfo_t queued;
    CHECK(sigwaitinfo(&ours, &queued) == SIGSEGV && queued.si_code == SI_QUEUE);
    CHECK(queued.si_value.sival_int == 5 && queued.si_pid == getpid());
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGBUS};
    event._sigev_un._tid = gettid();
    timer_t timer;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec once = {{0, 0}, {0, 1000}};
    CHECK(timer_settime(timer, 0, &once, NULL) == 0);
    while (!waiting(SIGBUS)) usleep(1000);
    CHECK(in_thread(looks) == 0);
    CHECK(sigwaitinfo(&ours, &queued) == SIGBUS && queued.si_code == SI_TIMER);
    CHECK(timer_delete(timer) == 0);

    /* Nobody waits: all see it, and what is sent to a thread is that thread's. */
    CHECK(kill(getpid(), SIGSEGV) == 0 && kill(getpid(), SIGSEGV) == 0);
    CHECK(raise(SIGBUS) == 0);
    CHECK(waiting(SIGSEGV) && waiting(SIGBUS));
    CHECK(in_thread(looks) == 1);
    pid_t child = fork();
    if (child == 0) _exit(waiting(SIGSEGV) + 2 * waiting(SIGBUS));
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(in_thread(opens) == 1);
    CHECK(!waiting(SIGSEGV) && waiting(SIGBUS));
    handled_by = 0;
    struct timespec none = {0, 0};
    siginfo_t info;
    CHECK(sigtimedwait(&ours, &info, &none) == SIGBUS);
    CHECK(sigtimedwait(&ours, &info, &none) == -1 && errno == EAGAIN);
    /* Sent to the process and to the thread: two. */
    CHECK(kill(getpid(), SIGSEGV) == 0 && raise(SIGSEGV) == 0);
    CHECK(sigtimedwait(&ours, &info, &none) == SIGSEGV);
    CHECK(sigtimedwait(&ours, &info, &none) == SIGSEGV);
    CHECK(sigtimedwait(&ours, &info, &none) == -1);
    CHECK(kill(getpid(), SIGBUS) == 0 && handled_by == 0);
    CHECK(sigprocmask(SIG_UNBLOCK, &ours, NULL) == 0 && handled_by == getpid());
    puts("ok");
    return 0;
}
