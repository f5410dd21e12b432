/* One thread forks, again and again, while the handler of another, which is in the midst of
 * malloc, free and realloc, makes children by calls that wait for nobody. None waits for ever,
 * and both find all they had. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FORKS = 60, BLOCKS = 64 };
static volatile int in_handler, by_call, stop;
static timer_t timer;

/* Once, in a while: a thread that is in its handler all the time leaves malloc never. */
static void set_timer(void) {
    struct itimerspec once = {{0, 0}, {0, 3000000}};
    CHECK(timer_settime(timer, 0, &once, NULL) == 0);
}

static void wait_for(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) != child) CHECK(errno == EINTR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void on_tick(int signal) {
    (void)signal;
    if (stop) return;
    int before = errno;
    pid_t child = in_handler % 2 ? syscall(SYS_fork) : syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(7);
    CHECK(child > 0);
    wait_for(child);
    in_handler++;
    set_timer();
    errno = before;
}

static void *allocates(void *unused) {
    (void)unused;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event._sigev_un._tid = gettid();
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    set_timer();
    unsigned char *blocks[BLOCKS] = {0};
    for (unsigned round = 0; !stop; round++) {
        unsigned at = round * 7 % BLOCKS;
        size_t bytes = 16 + round * 37 % 30000;
        if (blocks[at]) CHECK(blocks[at][0] == (unsigned char)at);
        if (round % 3 == 0) blocks[at] = realloc(blocks[at], bytes);
        else free(blocks[at]), blocks[at] = malloc(bytes);
        CHECK(blocks[at] != NULL);
        blocks[at][0] = at;
    }
    CHECK(timer_delete(timer) == 0);
    for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
    return NULL;
}

int main(void) {
    alarm(300);
    struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &tick, NULL) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocates, NULL) == 0);
    while (by_call < FORKS || in_handler < FORKS) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) _exit(7);
        wait_for(child);
        by_call++;
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    puts("ok");
    return 0;
}
