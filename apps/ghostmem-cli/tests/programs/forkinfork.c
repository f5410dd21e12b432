/* Handlers that fork, and write what malloc gave, come while the thread forks, too: the only one,
 * then, by _Fork(3), one of two. In what a program does before and behind a fork they come at once,
 * and what it changes there of its signals stays. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <gnu/libc-version.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t handled, forking, amid;
static unsigned char *block;
static int by_call, pipes[2];

static pid_t forks_somehow(int number) { return by_call || number & 1 ? _Fork() : fork(); }

static void *waits(void *unused) {
    (void)unused;
    pause();
    return NULL;
}

static int ends_well(pid_t child) {
    int status;
    pid_t ended;
    do ended = waitpid(child, &status, 0);
    while (ended < 0 && errno == EINTR);
    return ended == child && status == 0;
}

static void forks(int number) {
    (void)number;
    int before = errno;
    handled++;
    amid += forking;
    pid_t child = forks_somehow(handled);
    if (child == 0) _exit(block[100] != 3);
    unsigned char got[64];
    CHECK(write(pipes[1], block + 100000, 64) == 64 && read(pipes[0], got, 64) == 64 && got[63] == 3);
    CHECK(child > 0 && ends_well(child));
    errno = before;
}

static sigset_t blocked, alarm_only;

static void only_blocked_are(const sigset_t *those) {
    sigset_t found;
    CHECK(sigprocmask(SIG_BLOCK, NULL, &found) == 0);
    for (int number = 1; number < 65; number++) CHECK(sigismember(&found, number) == sigismember(those, number));
}

static void comes_at_once(void) {
    int before = handled;
    only_blocked_are(&blocked);
    /* The handler forks, and comes by here again. (Before 2.36 libc has a lock here.) */
    int locked = strverscmp(gnu_get_libc_version(), "2.36") < 0;
    if (!locked && forking++ < 2) CHECK(raise(SIGALRM) == 0 && handled > before);
    forking -= !locked;
}

static void opens(void) {
    comes_at_once();
    CHECK(sigprocmask(SIG_UNBLOCK, &blocked, NULL) == 0);
}

static void rounds(void) {
    for (int round = 0; round < 250; round++) {
        void *some[8];
        for (int i = 0; i < 8; i++) CHECK(some[i] = malloc(1000 * (i + 1) + round));
        /* One each round: at each moment of what comes before the call, then later. */
        int delay = 1 + (round % 4 ? round / 4 % 150 : round * 3);
        struct itimerval soon = {{0, 0}, {0, delay}};
        CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
        forking = 1;
        pid_t child = forks_somehow(round);
        if (child) forking = 0;
        if (child == 0) {
            only_blocked_are(&blocked);
            _exit(block[299999] != 3);
        }
        CHECK(child > 0 && ends_well(child));
        for (int i = 0; i < 8; i++) free(some[i]);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    block = ghost(300000);
    memset(block, 3, 300000);
    evict();
    struct sigaction action = {.sa_handler = forks, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    /* Beside it, one that is blocked, for the child, too. */
    sigemptyset(&blocked), sigaddset(&blocked, SIGUSR2);
    sigemptyset(&alarm_only), sigaddset(&alarm_only, SIGALRM);
    CHECK(pipe(pipes) == 0 && sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    rounds();
    CHECK(handled > 10 && amid > 10);
    pthread_t thread;
    CHECK(pthread_sigmask(SIG_BLOCK, &alarm_only, NULL) == 0 && pthread_create(&thread, NULL, waits, NULL) == 0);
    by_call = 1, handled = amid = 0;
    CHECK(pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL) == 0);
    rounds();
    CHECK(handled > 10 && amid > 10);

    action.sa_flags |= SA_NODEFER;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(pthread_atfork(comes_at_once, comes_at_once, opens) == 0);
    by_call = forking = handled = 0;
    for (int round = 0; round < 10; round++) {
        pid_t child = fork();
        if (child == 0) {
            sigset_t none;
            sigemptyset(&none);
            only_blocked_are(&none);
            _exit(0);
        }
        CHECK(child > 0 && ends_well(child));
        only_blocked_are(&blocked);
    }
    CHECK(handled > 20 || strverscmp(gnu_get_libc_version(), "2.36") < 0);
    printf("ok\n");
    return 0;
}
