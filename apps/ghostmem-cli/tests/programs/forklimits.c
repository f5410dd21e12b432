/* A low limit on open files is what the program set, in its threads and children, while several
 * of its threads make children. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILES = 40, ROUNDS = 60 };
static char *self;
static int is_over;

/* 0: the limit is the program's. */
static int is_other(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    return limit.rlim_cur != FILES;
}

static void ends_well(pid_t child, const char *what) {
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status) printf("wrong: %s: %x\n", what, status);
    CHECK(status == 0);
}

static void *forks(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        pid_t child = fork();
        if (child == 0) _exit(is_other());
        ends_well(child, "fork");
    }
    return NULL;
}

static void *spawns(void *unused) {
    (void)unused;
    char *arguments[] = {self, "child", NULL}, *none[] = {NULL};
    for (int i = 0; i < ROUNDS; i++) {
        pid_t child = 0;
        if (i % 2) {
            CHECK(posix_spawn(&child, self, NULL, NULL, arguments, none) == 0);
        } else {
            child = vfork();
            if (child == 0) {
                execve(self, arguments, none);
                _exit(9);
            }
        }
        ends_well(child, i % 2 ? "posix_spawn" : "vfork");
    }
    return NULL;
}

static void *asks(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&is_over, __ATOMIC_RELAXED)) CHECK(!is_other());
    return NULL;
}

int main(int argc, char **argv) {
    if (argc == 2) return is_other();
    CHECK(argc == 3);
    alarm(300);
    self = argv[0];
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = FILES;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    prepare(argv[2]);
    evict();
    pthread_t threads[4];
    void *(*bodies[])(void *) = {forks, forks, spawns, asks};
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0);
    for (int i = 0; i < 4; i++) {
        if (i == 3) __atomic_store_n(&is_over, 1, __ATOMIC_RELAXED);
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(!is_other());
    puts("ok");
    return 0;
}
