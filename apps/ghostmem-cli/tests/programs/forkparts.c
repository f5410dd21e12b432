/* What a program does before and behind its forks, registered before any library has been
 * initialised: its signals come meanwhile, as a thread needs that stops the others by them. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_mutex_t world = PTHREAD_MUTEX_INITIALIZER;
static pthread_t forking;
static volatile sig_atomic_t done, stopped, parts;
static unsigned char *block;
static sem_t answered;

static void expect_open(void) {
    sigset_t found;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &found) == 0);
    for (int number = 1; number < 32; number++) CHECK(sigismember(&found, number) == (number == SIGUSR2));
    parts++;
}

static void before(void) {
    expect_open();
    CHECK(pthread_mutex_lock(&world) == 0);
}

static void behind(void) {
    CHECK(pthread_mutex_unlock(&world) == 0);
    expect_open();
}

static void in_child(void) {
    behind();
    sigset_t none;
    sigemptyset(&none);
    CHECK(block[70000] == 5 && pthread_sigmask(SIG_SETMASK, &none, NULL) == 0);
}

static void registers(void) { pthread_atfork(before, behind, in_child); }

__attribute__((section(".preinit_array"), used)) static void (*first)(void) = registers;

static void stops(int number) {
    (void)number;
    int errno_before = errno;
    stopped++;
    sem_post(&answered);
    errno = errno_before;
}

static void *stops_the_other(void *unused) {
    (void)unused;
    while (!done) {
        CHECK(pthread_mutex_lock(&world) == 0);
        CHECK(pthread_kill(forking, SIGUSR1) == 0);
        while (sem_wait(&answered)) CHECK(errno == EINTR);
        CHECK(pthread_mutex_unlock(&world) == 0);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    block = ghost(100000);
    memset(block, 5, 100000);
    evict();
    sigset_t one;
    sigemptyset(&one), sigaddset(&one, SIGUSR2);
    struct sigaction action = {.sa_handler = stops, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sem_init(&answered, 0, 0) == 0);
    pthread_t other;
    forking = pthread_self();
    CHECK(pthread_create(&other, NULL, stops_the_other, NULL) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &one, NULL) == 0);
    for (int round = 0; round < 100; round++) {
        pid_t child = fork();
        if (child == 0) {
            sigset_t found;
            CHECK(sigprocmask(SIG_BLOCK, NULL, &found) == 0 && !sigismember(&found, SIGUSR2));
            _exit(0);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
    done = 1;
    CHECK(pthread_join(other, NULL) == 0 && parts == 200 && stopped > 0);
    printf("ok\n");
    return 0;
}
